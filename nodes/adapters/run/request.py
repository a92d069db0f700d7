"""What the sampling of every family begins with, and what none of them can be sampled with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ....flowcache_core.calibrate.recording import Recording
from ....flowcache_core.engine import EngineSettings
from ....flowcache_core.errors import require
from ....flowcache_core.kv.spec import KVSpec
from ....flowcache_core.report.live import LiveRun
from ....flowcache_core.report.record import Recorder
from ....flowcache_core.schedule import Schedule
from ..naming import naming
from ..shown.live_map import LiveMap
from ..shown.live_preview import Display
from ..shown.progress import Progress
from .measured import MeasuredRun
from .plan_choice import PlanChoice
from .prefix import clean_frames
from .settings import FlowCacheSettings, refuse_other_caches, settings_of
from .sparse import before_run
from .start_image import image_notes
from .table_fit import heads_notes


@dataclass(frozen=True)
class Request:
    """One call of the host's SAMPLER.

    given: clean latents from the sampler node's prefix input, or None. inpainting: the host's KSamplerX0Inpaint around
    the guider. x: ``[B, C, F, H, W]`` at the first of ``sigmas``. callback: the host's, per step.
    """

    choice: PlanChoice
    given: Tensor | None
    display: Display
    inpainting: Any
    x: Tensor
    sigmas: Tensor
    extra_args: Mapping[str, Any]
    disable: bool
    callback: Any


class Sampling:
    """Base of a family's run: everything is checked and planned when it is made, computed in its ``run``."""

    measured: MeasuredRun | None = None
    progress: Progress
    recording: Recording | None

    def __init__(self, request: Request) -> None:
        self.request, self.choice, self.x = request, request.choice, request.x
        self.guider, self.options = request.inpainting.inner_model, request.extra_args["model_options"]
        self.model, self.seed = self.guider.inner_model, request.extra_args.get("seed") or 0
        self.check()
        self.settings: FlowCacheSettings = settings_of(self.options)
        self.mask = request.extra_args.get("denoise_mask")
        image = request.inpainting.latent_image
        self.prefix = clean_frames(request.given, self.options, self.mask, image, self.model, self.x)
        self.prefix_frames = 0 if self.prefix is None else self.prefix.shape[2]

    def check(self) -> None:
        """SettingError naming what the family cannot be sampled with."""
        raise NotImplementedError

    @property
    def masks_inside_frames(self) -> bool:
        """Whether the mask keeps more than whole frames at the start."""
        return self.mask is not None and bool((self.mask[:, :, self.prefix_frames :] != 1).any())

    def progress_of(self, engines: Sequence[EngineSettings], *, ends_clean: bool, preview: Any) -> Progress:
        """What is shown of a run with these settings, one of each window; the prefix is there from the start."""
        progress = Progress(
            total=sum(engine.plan.total_steps for engine in engines),
            live=LiveMap(LiveRun(engines), self.settings),
            clean=self.x.new_zeros(self.x.shape),
            noisy=self.x,
            callback=self.request.callback,
            ends_clean=ends_clean,
            disable=self.request.disable,
            preview=preview,
            notes=(
                *image_notes(self.guider.conds, self.model.diffusion_model),
                *reuse_notes(self.settings, self.guider.model_patcher),
            ),
        )
        if self.prefix is not None:
            progress.clean[:, :, : self.prefix_frames] = self.prefix
        return progress

    def keep(self, recorder: Recorder) -> None:
        """Leave what the run has noted so far for the report."""
        message = self.progress.live.message()
        heads, settings = None if self.measured is None else self.measured.heads, self.settings
        compressor = settings.kv is not None
        settings.slot.keep(recorder, message, self.recording, settings.chosen, heads, compressor=compressor)

    @property
    def runs(self) -> Sequence[EngineSettings]:
        """The engine's settings of every window."""
        raise NotImplementedError

    @property
    def forwards_per_step(self) -> int:
        """Forwards that guidance asks for."""
        raise NotImplementedError

    def run(self) -> Tensor:
        """The latents at the last noise level."""
        raise NotImplementedError


def reuse_notes(settings: FlowCacheSettings, patcher: Any) -> tuple[str, ...]:
    """Sentences on what the reuse node chose, for this model."""
    return () if settings.chosen is None else settings.chosen.notes(patcher)


def sparse_notes(sampling: Sampling, spec: KVSpec, texts: Sequence[Tensor]) -> tuple[str, ...]:
    """Sentences on what the sparse attention node chose, for this model, video and prompt."""
    settings, model = sampling.settings, sampling.model
    if settings.sparse is None:
        return () if sampling.measured is None else (sampling.measured.note,)
    tokens, engine = max((text.shape[1] for text in texts), default=None), sampling.runs[0]
    engine = replace(engine, kv=engine.kv.settled(spec, engine.plan))  # megabytes say nothing of contexts
    sentences = before_run(
        settings.sparse, model.diffusion_model, engine, spec.tokens_per_frame, sampling.options, tokens
    )
    return (*sentences, *heads_notes(settings.heads, sampling.guider.model_patcher))


def refuse_clashes(options: Mapping[str, Any], *, clones: bool = False) -> None:
    """SettingError for what other nodes put on a model that excludes sampling by chunks. clones: whether the host's on
    other devices are made use of."""
    refuse_other_caches(options)
    known = (("context_handler", "context windows"), *(() if clones else (("multigpu_clones", "several GPUs"),)))
    for key, name in known:
        accepted = f"one without: chunks and {name} exclude each other"
        require(key not in options, "model", f"a model with {name}", accepted)


def reuse_fields(settings: FlowCacheSettings, schedule: Schedule, patcher: Any) -> dict[str, Any]:
    """What the reuse node chose as fields of the core's settings; SettingError in its name where it does not fit.

    patcher: the host's, of the model that runs.
    """
    if settings.chosen is None:
        return {}
    with naming("FlowCache Chunkwise Reuse"):
        settings.chosen.check(schedule, patcher)
    return settings.chosen.engine_fields
