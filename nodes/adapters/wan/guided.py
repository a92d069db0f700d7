"""One guider call: a part of the video at one noise level, with all that other nodes have put on the model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.samplers
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..run.foreign import OURS
from ..run.prompt_schedule import Entry
from .compiled import block_by_block
from .parts import Part
from .remembered import Remembered


@dataclass(frozen=True)
class Inpaint:
    """What the host's inpainting needs of a window: mask, known latents and their noise ``[B, C, F, H, W]``."""

    mask: Tensor
    latent_image: Tensor
    noise: Tensor
    sigmas: Tensor

    def of(self, frames: slice) -> Inpaint:
        """The part of a window."""
        parts = (tensor[:, :, frames] for tensor in (self.mask, self.latent_image, self.noise))
        return Inpaint(*parts, self.sigmas)

    def around(self, model: Any) -> comfy.samplers.KSamplerX0Inpaint:
        """The host's inpainting around a guider; the mask is given to each call."""
        known = comfy.samplers.KSamplerX0Inpaint(model, self.sigmas)
        known.latent_image, known.noise = self.latent_image, self.noise
        return known


@dataclass
class Noted:
    """In a guider's place: keeps what it is called with."""

    inner_model: Any
    x: Tensor | None = None

    def __call__(self, x: Tensor, sigma: Tensor, **kwargs: Any) -> Tensor:
        self.x = x
        return x


@dataclass
class Asked:
    """Outermost CALC_COND_BATCH wrapper of one guider call: what the guider wants evaluated.

    model_options: of the run. entries: cond uuid -> blocks of the model that other nodes have replaced for its first
    evaluation.
    """

    model_options: Mapping[str, Any]
    calls: int = 0
    entries: dict[Any, set[int]] = field(default_factory=dict)

    def __call__(
        self, executor: Any, model: Any, conds: list[Any], x: Tensor, timestep: Tensor, model_options: dict[str, Any]
    ) -> Any:
        self.calls += 1
        replacements = model_options["transformer_options"].get("patches_replace", {}).get("dit", {})
        blocks = {place[1] for place in replacements if place[0] == "double_block"}
        for entries in conds:
            for entry in entries or ():
                if "default" not in entry:  # those run only where no other entry reaches
                    self.entries.setdefault(entry["uuid"], blocks)
        return executor(model, conds, x, timestep, model_options)


@dataclass(frozen=True)
class Guided:
    """The guider of a run and what it is called with."""

    guider: Any
    model_options: Mapping[str, Any]
    seed: int | None
    inpaint: Inpaint | None
    remembered: Remembered

    def seen(self, latents: Tensor, parts: Sequence[Part]) -> Tensor:
        """A window's latents as the model gets them: known ones at the part's level where a mask keeps them."""
        if self.inpaint is None:
            return latents
        latents = latents.clone()
        for part in parts:
            x, known = latents[:, :, part.frames], self.inpaint.of(part.frames)
            level = x.new_full((x.shape[0],), part.sigma)
            noted = Noted(self.guider.inner_model)
            known.around(noted)(x, level, known.mask, model_options=self.model_options)
            latents[:, :, part.frames] = noted.x
        return latents

    def predict(
        self,
        x: Tensor,
        sigma: float,
        frames: slice,
        conds: dict[str, list[Entry]],
        options: Mapping[str, Any],
        *,
        part: Hashable,
        asked: Asked | None = None,
        model: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """The guided clean prediction ``[B, C, f, H, W]`` of these ``frames`` of the window, ``x`` at ``sigma``.

        options: transformer options in addition. part: whose memory guidance functions go on with. asked: notes what
        the guider asks for. model: an APPLY_MODEL wrapper closer to the model than those of other nodes.
        """
        given = self.model_options["transformer_options"]
        wrappers = {kind: dict(by_key) for kind, by_key in given.get("wrappers", {}).items()}
        inner = [block_by_block] if model is None else [model, block_by_block]
        wrappers[WrappersMP.APPLY_MODEL] = {**wrappers.get(WrappersMP.APPLY_MODEL, {}), OURS: inner}
        if asked is not None:
            wrappers[WrappersMP.CALC_COND_BATCH] = {OURS: [asked], **wrappers.get(WrappersMP.CALC_COND_BATCH, {})}
        options = {**given, **options, "wrappers": wrappers}
        arguments = {"model_options": {**self.model_options, "transformer_options": options}, "seed": self.seed}
        level = x.new_full((x.shape[0],), sigma)
        everything, self.guider.conds = self.guider.conds, conds
        try:
            with self.remembered.of(part):
                if self.inpaint is None:
                    return self.guider(x, level, **arguments)
                known = self.inpaint.of(frames)
                return known.around(self.guider)(x, level, known.mask, **arguments)
        finally:
            self.guider.conds = everything
