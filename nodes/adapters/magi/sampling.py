"""One run of MAGI-1 behind the host's SAMPLER: the core's denoiser over the transformer that the host has loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from comfy.ldm.modules.attention import optimized_attention
from comfy.model_sampling import CONST
from torch import Tensor

from ....flowcache_core.denoiser import ChunkInput
from ....flowcache_core.engine import EngineSettings, generate
from ....flowcache_core.errors import require
from ....flowcache_core.kv.size import run_bytes
from ....flowcache_core.models.magi.denoiser import MagiDenoiser
from ....flowcache_core.models.magi.guidance import CLEAN_TIME
from ....flowcache_core.models.magi.layers import AttentionKernel
from ....flowcache_core.models.magi.transformer import MagiTransformer
from ....flowcache_core.noise import host_noise
from ....flowcache_core.plan import SlidingWindow
from ....flowcache_core.plan.base import Plan
from ....flowcache_core.report.record import Recorder
from ....flowcache_core.schedule import SHORTCUTS, Schedule, from_sigmas, magi, magi_distill_times
from ....flowcache_core.sparse.expected import mask_memory
from ....flowcache_core.video.magi import DISTILLED_STEPS
from ..naming import naming
from ..run.finite import require_finite_inputs
from ..run.foreign import FUNCTIONS, around, compiles, listed, name_of
from ..run.measured import MeasuredRun, texts_of
from ..run.memory import announce, make_room
from ..run.plan_choice import PlanChoice
from ..run.prompt_schedule import recached
from ..run.recorded import recorded
from ..run.request import Request, Sampling, refuse_clashes, reuse_fields, sparse_notes
from ..run.settings import FlowCacheSettings, run_of, settings_of
from ..run.sparse import check_sparse, with_attention
from ..shown.live_preview import Display, LivePreview
from .model import MagiLatents, MagiVariant
from .text import ChunkCaptions
from .vae import magi_preview

PLAN = SlidingWindow.title
SAME_LEVEL = 2e-6
"""Sigmas went through the host's float32."""


def is_magi(model: Any) -> bool:
    return isinstance(model.diffusion_model, MagiTransformer)


@dataclass
class HostMagiDenoiser(MagiDenoiser):
    """clean: the newest clean prediction of the video ``[B, C, F, H, W]``, written with every step, for previews."""

    clean: Tensor | None = None

    def guide(self, velocity: Tensor, item: ChunkInput) -> Tensor:
        guided = super().guide(velocity, item)
        if self.clean is not None:
            self.clean[:, :, item.chunk.first_frame : item.chunk.end_frame] = item.latents - item.sigma * guided
        return guided


class MagiSampling(Sampling):
    """One run of the core's denoiser over the whole video."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        require_finite_inputs(self.x, self.guider.conds, ["positive"])
        for name in (*around(self.options), *(["torch.compile"] if compiles(self.options) else [])):
            logging.warning("FlowCache: %s is not called with MAGI-1", name)
        steps = MagiSteps.of(request.sigmas.tolist(), self.model.variant)
        accepted = "one that keeps whole frames at the start, or none"
        require(not self.masks_inside_frames, "noise mask", "a mask inside frames", accepted)
        plan = plan_of(self.choice, self.x.shape[2], steps.schedule.steps, self.prefix_frames)
        guidance, solver = text_scale(self.model.variant), self.choice.solver.name
        run = run_of(self.guider.model_patcher, steps.schedule, guidance=guidance, solver=solver, plan=plan)
        self.settings = self.settings.settled(run)
        engine = engine_settings(self.choice, plan, steps.schedule, self.settings, self.guider)
        (self.engine,), self.recording = recorded([engine], self.guider.model_patcher, guidance, self.seed)
        self.progress = self.progress_of([self.engine], ends_clean=True, preview=self.preview(request.display))
        config = self.model.diffusion_model.config
        captions = ChunkCaptions(
            entries=self.guider.conds["positive"],
            chunks=len(plan.chunks),
            first=plan.prefix_chunks,
            dim=config.text_dim,
            length=config.text_len,
            model_sampling=self.model.model_sampling,
        )
        self.denoiser = denoiser_of(
            self.model, captions, steps.step_times, kernel=host_kernel(self.options["transformer_options"])
        )
        self.denoiser.clean = self.progress.clean
        spec = self.denoiser.kv_spec(self.x)
        check_sparse([self.engine], spec, self.options)
        texts = texts_of(self.guider.conds)
        measure, patcher, on_ranks = self.settings.measure, self.guider.model_patcher, self.settings.ranks is not None
        video = (self.seed, self.x, *texts)
        self.measured = MeasuredRun.of(measure, [self.engine], spec, patcher, guidance, video, on_ranks)
        self.progress.notes += sparse_notes(self, spec, texts)

    def check(self) -> None:
        check(self.guider, self.model, self.choice, self.x, self.options)

    def preview(self, display: Display) -> LivePreview | None:
        own = isinstance(self.model.latent_format, MagiLatents)
        return magi_preview(display, self.x) if own else display.preview(self.x)

    @property
    def runs(self) -> Sequence[EngineSettings]:
        return (self.engine,)

    @property
    def forwards_per_step(self) -> int:
        return self.denoiser.branches

    def run(self) -> Tensor:
        engine = self.engine
        if self.settings.kv_settings.device != "cpu":
            spec = self.denoiser.kv_spec(self.x)
            needed = run_bytes(spec, engine.kv, engine.plan, engine.sparse is not None)
            needed += mask_memory(engine.sparse, spec, engine.plan, engine.kv)
            make_room(self.guider.model_patcher, self.x.device, needed)
        recorder = Recorder.of(engine)
        self.progress.begin(0, recorder)
        try:
            noise = host_noise(self.seed, engine.plan.prefix_chunks)
            denoiser = self.denoiser if self.measured is None else self.measured.around(self.denoiser)
            return generate(denoiser, engine, self.x, prefix=self.prefix, noise_source=noise, observe=self.progress)
        finally:
            self.progress.close()
            self.keep(recorder)


@dataclass(frozen=True)
class MagiSteps:
    """A schedule and, for distilled weights, what they are told about each step."""

    schedule: Schedule
    step_times: tuple[float, ...] = ()

    @classmethod
    def of(cls, sigmas: list[float], variant: MagiVariant) -> MagiSteps:
        """Base weights take any sigmas down to 0; distilled ones the published schedules. SettingError otherwise."""
        given = from_sigmas(sigmas)
        require(given.sigmas[-1] == 0, "sigmas", f"a schedule that ends at {given.sigmas[-1]:g}", "one that ends at 0")
        published = {mode: magi(given.steps, mode) for mode in SHORTCUTS}
        for mode, schedule in published.items():
            if all(abs(a - b) < SAME_LEVEL for a, b in zip(given.sigmas, schedule.sigmas, strict=True)):
                if not variant.distilled:
                    accepted = "another number with base weights: the 12 steps are of two lengths, for distilled ones"
                    require(given.steps != 12, "steps", 12, accepted)
                    return cls(schedule)
                accepted = f"{', '.join(map(str, DISTILLED_STEPS))} with distilled weights"
                require(given.steps in DISTILLED_STEPS, "steps", given.steps, accepted)
                return cls(schedule, magi_distill_times(given.steps, mode))
        accepted = "those of MAGI-1 Schedule: distilled weights know only the noise levels they were distilled at"
        require(not variant.distilled, "sigmas", tuple(round(sigma, 4) for sigma in given.sigmas[:4]), accepted)
        times = tuple(1 - sigma for sigma in given.sigmas[:-1])
        return cls(Schedule(given.sigmas, times, clean_time=1.0, noise_time=0.0))


def reserve(guider: Any, choice: PlanChoice, latent_image: Tensor, sigmas: Tensor) -> None:
    """Before the model is loaded: refuse what cannot be sampled and tell the host about the K/V."""
    model, settings = guider.model_patcher.model, settings_of(guider.model_options)
    check(guider, model, choice, latent_image, guider.model_options)
    plan = plan_of(choice, latent_image.shape[2], max(1, len(sigmas) - 1), 0)
    spec = denoiser_of(model, {0: ()}, ()).kv_spec(latent_image)
    kv, needed = settings.kv_settings, 0
    with naming("KV Cache Compressor"):
        stored = run_bytes(spec, kv, plan, settings.sparse is not None)
    if kv.device != "cpu":
        needed = stored + mask_memory(settings.sparse, spec, plan, kv)
    announce(guider, choice.chunk_frames, needed)


def plan_of(choice: PlanChoice, frames: int, steps: int, prefix_frames: int) -> Plan:
    return choice.kind.plan(frames, steps, prefix_frames)


def denoiser_of(
    model: Any, captions: Mapping[int, Any], step_times: tuple[float, ...], **fields: Any
) -> HostMagiDenoiser:
    variant: MagiVariant = model.variant
    return HostMagiDenoiser(
        model.diffusion_model,
        captions,
        guidance=None if variant.distilled else variant.guidance,
        step_times=step_times,
        nearly_clean=variant.nearly_clean,
        ranges=variant.ranges,
        clean_range=variant.clean_range,
        **fields,
    )


def text_scale(variant: MagiVariant) -> float:
    """What the text is guided with at first, 1 for distilled weights, which take no guidance."""
    return 1.0 if variant.distilled or variant.guidance is None else float(variant.guidance.text[0])


def host_kernel(transformer_options: Mapping[str, Any]) -> AttentionKernel:
    """The host's attention, with what other nodes put in its place."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        options = {"skip_reshape": True, "skip_output_reshape": True, "transformer_options": transformer_options}
        out: Tensor = optimized_attention(q, k, v, q.shape[1], **options)
        return out

    return attend


def engine_settings(
    choice: PlanChoice, plan: Plan, schedule: Schedule, settings: FlowCacheSettings, guider: Any
) -> EngineSettings:
    """What the model carries and the sampler's fields together. Errors name the node whose field does not fit."""
    reuse = reuse_fields(settings, schedule, guider.model_patcher)
    with naming("AR Prompt Schedule"):
        require(not recached(guider.conds), "recache", True, "off: chunks of the sliding window overlap in time")
    engine = EngineSettings(
        plan=plan,
        schedule=schedule,
        solver=choice.solver,
        kv=settings.kv_settings,
        clean_pass=choice.clean_pass,
        clean_timestep=CLEAN_TIME,
        **reuse,
    )
    return with_attention(engine, settings.sparse)


def check(guider: Any, model: Any, choice: PlanChoice, latents: Tensor, options: Mapping[str, Any]) -> None:
    """SettingError naming what MAGI-1 cannot be sampled with."""
    require(choice.kind.title == PLAN, "plan", choice.kind.title, f"{PLAN}, with MAGI-1")
    require(isinstance(model.model_sampling, CONST), "model", "a model that is not flow matching", "a MAGI-1 model")
    accepted = "Basic Guider, or cfg 1: MAGI-1 has guidance of its own (Load MAGI-1 Model, variant base)"
    cfg = getattr(guider, "cfg", 1.0)
    plain = "positive" in guider.conds or "positive" in guider.original_conds
    require(plain and cfg == 1, "guider", f"{type(guider).__name__} with cfg {cfg:g}", accepted)
    shape = tuple(latents.shape)
    multiple = model.diffusion_model.config.patch[1]
    fits = latents.ndim == 5 and shape[1] == 16 and shape[3] % multiple == shape[4] % multiple == 0
    sides = f"width and height multiples of {8 * multiple}"
    require(fits, "latent_image", shape, f"video latents [B, 16, F, H, W], {sides}, from Empty MAGI-1 Latent")
    refuse_clashes(options)
    guidance = [name_of(function) for name in FUNCTIONS for function in listed(options.get(name))]
    accepted = "none: MAGI-1 has guidance of its own, and other nodes' is not called"
    require(not guidance, "guidance nodes", ", ".join(guidance), accepted)
