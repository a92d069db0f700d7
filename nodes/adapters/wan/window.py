"""Bidirectional attention where chunks are at different noise levels: the guider is asked part by part.

Guidance, masks and prompt ranges know one noise level and one clean prediction, those of the part they are asked for.
The model however looks at the whole window, with a timestep per frame. So each part's model call is answered out of one
pass over the window, which the parts share wherever it would be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..run.foreign import OURS
from .parts import Part

PER_CALL = {"sigmas", "cond_or_uncond", "uuids"}
LEVEL = "sigmas"


@dataclass(frozen=True)
class Pass:
    """A conditioning entry's pass over the window: flow ``[B, C, F, H, W]`` and under which options it was made. level:
    the part's at which it was made, where something in the model has asked for it.
    """

    uuid: Any
    options: dict[str, Any]
    level: float | None
    flow: Tensor


@dataclass
class WindowModel:
    """One tick. latents: as the model sees them ``[B, C, F, H, W]``, frame ``first_frame`` of the window first;
    timesteps: one per frame. answered: for which part and conditioning entry the model has been asked.
    """

    latents: Tensor
    timesteps: Sequence[float]
    first_frame: int = 0
    passes: list[Pass] = field(default_factory=list)
    answered: set[tuple[Part, Any]] = field(default_factory=set)

    def asked(self, part: Part, entries: set[Any]) -> None:
        """The model is about to answer for a part; ``entries``: conditioning it has not yet been asked for there."""

    def at(self, part: Part) -> Callable[..., Tensor]:
        """The APPLY_MODEL wrapper that answers for this part."""
        return partial(self.answer, part)

    def frames(self, part: Part) -> slice:
        """Where a part lies in ``latents``."""
        return slice(part.first_frame - self.first_frame, part.end_frame - self.first_frame)

    def answer(
        self,
        part: Part,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any,
        c_crossattn: Any,
        control: Any,
        transformer_options: dict[str, Any],
        **kwargs: Any,
    ) -> Tensor:
        uuids = transformer_options["uuids"]
        self.asked(part, {uuid for uuid in uuids if (part, uuid) not in self.answered})
        self.answered |= {(part, uuid) for uuid in uuids}
        frames = self.frames(part)
        own = self.latents[:, :, frames]
        shared = torch.equal(x, own.repeat(len(uuids), 1, 1, 1, 1))  # not what a guidance node has changed
        comparable = without_calls(transformer_options)
        flows = [self.found(uuid, comparable, part.sigma) if shared else None for uuid in uuids]
        known = [flow for flow in flows if flow is not None]
        if len(known) < len(uuids):
            window = self.latents.repeat(len(uuids), 1, 1, 1, 1)
            window[:, :, frames] = x
            asked = LevelAsked()
            wrappers = {kind: dict(by_key) for kind, by_key in transformer_options["wrappers"].items()}
            outermost = {OURS: [partial(self.per_frame, asked)]}
            wrappers[WrappersMP.DIFFUSION_MODEL] = {**outermost, **wrappers.get(WrappersMP.DIFFUSION_MODEL, {})}
            options = {**transformer_options, "wrappers": wrappers}
            # At noise level 1 the host's clean prediction is ``x - flow``.
            clean = executor(window, torch.ones_like(t), c_concat, c_crossattn, control, options, **kwargs)
            known = list((window - clean).chunk(len(uuids)))
            if shared:
                level = part.sigma if asked.once else None
                self.passes += (Pass(uuid, comparable, level, flow) for uuid, flow in zip(uuids, known, strict=True))
        flow = torch.cat([flow[:, :, frames] for flow in known])
        return x - t.view(-1, 1, 1, 1, 1) * flow

    def per_frame(
        self,
        asked: LevelAsked,
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        context: Any,
        clip_fea: Any,
        time_dim_concat: Any,
        transformer_options: dict[str, Any],
        **kwargs: Any,
    ) -> Any:
        """Outermost DIFFUSION_MODEL wrapper: the model and what other nodes put into it get the real timesteps."""
        times = torch.tensor(self.timesteps, device=timestep.device).expand(x.shape[0], -1)
        watched = WatchedOptions(transformer_options, asked)
        return executor(x, times, context, clip_fea, time_dim_concat, watched, **kwargs)

    def found(self, uuid: Any, options: dict[str, Any], sigma: float) -> Tensor | None:
        for done in self.passes:
            if done.uuid == uuid and done.level in (None, sigma) and same(done.options, options):
                return done.flow
        return None


@dataclass
class LevelAsked:
    once: bool = False


class WatchedOptions(dict[str, Any]):
    """Transformer options that note whether anything inside the model reads the part's noise level: what it does then
    holds for that part alone. A copy of them goes on noting.
    """

    def __init__(self, options: dict[str, Any], asked: LevelAsked) -> None:
        super().__init__(options)
        self.asked = asked

    def __getitem__(self, key: str) -> Any:
        self.asked.once |= key == LEVEL
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.once |= key == LEVEL
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:  # else ``{**options}`` takes the values without asking
        return super().__iter__()

    def copy(self) -> WatchedOptions:
        return WatchedOptions(dict(super().items()), self.asked)


def without_calls(options: dict[str, Any]) -> dict[str, Any]:
    """The transformer options that shape a pass, without those that differ from call to call anyway."""
    kept = {key: value for key, value in options.items() if key not in PER_CALL}
    wrappers = kept.get("wrappers", {})
    kept["wrappers"] = {
        kind: {key: functions for key, functions in by_key.items() if key != OURS} for kind, by_key in wrappers.items()
    }
    return kept


def same(one: Any, other: Any) -> bool:
    """Whether two options are alike: containers by what is in them, objects by identity, numbers and texts by value."""
    if one is other:
        return True
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool | int | float | str) and type(one) is type(other) and one == other
