"""One run of a plan by the core's engine over the host's own Wan model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from comfy.ldm.wan.ar_model import CausalWanModel
from comfy.ldm.wan.model import WanModel
from comfy.model_sampling import CONST
from torch import Tensor

from ....flowcache_core.denoiser import Denoiser
from ....flowcache_core.engine import EngineSettings, generate
from ....flowcache_core.errors import Found, require
from ....flowcache_core.kv.branched import BranchedCache
from ....flowcache_core.kv.layout import max_active_frames
from ....flowcache_core.kv.settings import KVSettings
from ....flowcache_core.kv.size import run_bytes
from ....flowcache_core.noise import host_noise
from ....flowcache_core.plan.shots import Shots
from ....flowcache_core.plan.staggered import VideoWindow
from ....flowcache_core.released import Released
from ....flowcache_core.report.record import Recorder
from ....flowcache_core.schedule import Schedule, from_sigmas
from ....flowcache_core.sparse.expected import mask_memory
from ..naming import naming
from ..run.finite import require_finite_inputs
from ..run.measured import MeasuredRun, texts_of
from ..run.memory import announce, make_room
from ..run.plan_choice import PlanChoice
from ..run.prompt_schedule import cuts, recached, starts
from ..run.recorded import recorded
from ..run.request import Request, Sampling, refuse_clashes, reuse_fields, sparse_notes
from ..run.settings import FlowCacheSettings, run_of, settings_of
from ..run.sparse import check_sparse, with_attention
from .attention import Forward, attached
from .branches import Branches, names_that_run
from .clones import all_attached, check_clones, others
from .compiled import refuse_one_graph
from .denoiser import HostDenoiser, kv_spec
from .guided import Guided, Inpaint
from .hooks import refuse_keyframes
from .remembered import Remembered
from .rope import exact_positions

WAN = "a Wan 2.1 text-to-video model (Self-Forcing, Causal-Forcing, SkyReels-V2 DF ...)"


class WanSampling(Sampling):
    """One run over the host's own model, window by window."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        choice, x, conds = self.choice, self.x, self.guider.conds
        self.schedule = from_sigmas(request.sigmas.tolist())
        self.inpaint: Inpaint | None = None
        self.forwards: Sequence[Forward] = ()
        self.elsewhere: Mapping[Any, Sequence[Forward]] = {}
        if self.mask is not None and self.masks_inside_frames:
            known = request.inpainting
            self.inpaint = Inpaint(self.mask.expand(x.shape), known.latent_image, known.noise, request.sigmas)
        self.windows = choice.windows(x.shape[2], self.prefix_frames)
        guidance = float(getattr(self.guider, "cfg", 1.0))
        levels = [choice.schedule(part, self.schedule) for part in self.windows]
        settled = [
            self.settings.settled(
                run_of(
                    self.guider.model_patcher,
                    schedule,
                    guidance=guidance,
                    solver=choice.solver.name,
                    plan=choice.plan(part, schedule.steps),
                )
            )
            for part, schedule in zip(self.windows, levels, strict=True)
        ]
        engines = [
            engine_settings(choice, part, schedule, settings, self.guider)
            for part, schedule, settings in zip(self.windows, levels, settled, strict=True)
        ]
        self.settings = settled[0]
        self.engines, self.recording = recorded(engines, self.guider.model_patcher, guidance, self.seed)
        noise = (*sorted({sigma for engine in self.engines for sigma in engine.schedule.sigmas[:-1]})[::-1], 0.0)
        self.recorder = Recorder.of(self.engines[0])
        names = names_that_run(self.guider, x[:, :, : choice.chunk_frames], noise, self.options)
        require_finite_inputs(x, conds, names)
        self.branches = Branches(conds, names, noise, self.model.model_sampling)
        refuse_keyframes([conds[name] for name in names], self.engines)
        self.clones = others(self.options, self.model)
        check_clones(self.clones, self.engines)
        spec = kv_spec(self.model, x.shape, self.branches.count, x.device)
        check_sparse(self.engines, spec, self.options)
        video = (self.seed, x, *texts_of(conds))
        measure, patcher, on_ranks = self.settings.measure, self.guider.model_patcher, self.settings.ranks is not None
        self.measured = MeasuredRun.of(measure, self.engines, spec, patcher, guidance, video, on_ranks)
        ends_clean = self.schedule.sigmas[-1] == 0
        self.progress = self.progress_of(
            self.engines,
            ends_clean=ends_clean,
            preview=request.display.preview(x) if ends_clean else None,
        )
        self.progress.notes += sparse_notes(self, spec, texts_of(conds))

    def check(self) -> None:
        check(self.model, self.x, self.options, self.choice.released)
        if self.choice.released is not None:
            self.choice.released.check_levels(from_sigmas(self.request.sigmas.tolist()))

    @property
    def runs(self) -> Sequence[EngineSettings]:
        return self.engines

    @property
    def forwards_per_step(self) -> int:
        return self.branches.count

    def run(self) -> Tensor:
        self.make_room()
        output = self.x.clone()
        try:
            with ExitStack() as stack:
                stack.enter_context(exact_positions(self.model.diffusion_model))
                if self.choice.attention != "bidirectional":
                    self.forwards = stack.enter_context(attached(self.model.diffusion_model))
                    self.elsewhere = stack.enter_context(all_attached(self.clones))
                for number, part in enumerate(self.windows):
                    output[:, :, part.first_frame : part.end_frame] = self.window(number, part)
        finally:
            self.progress.close()
        if self.prefix is not None:
            # The host will take everything to be at the last noise level and divide by what is left of the signal.
            output[:, :, : self.prefix.shape[2]] *= 1 - self.schedule.sigmas[-1]
        return output

    def window(self, number: int, part: VideoWindow) -> Tensor:
        """The latents of one window; its prefix is the video's, or the end of the window before."""
        released, engine = self.choice.released, self.engines[number]
        frames = slice(part.first_frame, part.end_frame)
        clean = self.progress.clean[:, :, frames]
        denoiser = HostDenoiser(
            guided=Guided(
                guider=self.guider,
                model_options=self.options,
                seed=self.seed,
                inpaint=self.inpaint and self.inpaint.of(frames),
                remembered=Remembered(self.options),
            ),
            model=self.model,
            forwards=self.forwards,
            elsewhere=self.elsewhere,
            all_branches=self.branches,
            clean=clean,
            first_chunk=part.first_frame // self.choice.chunk_frames,
            leftover=self.schedule.sigmas[-1] > 0,
            shots=released.shots(cuts(self.guider.conds)) if released else Shots(),
        )
        self.progress.begin(part.first_frame, self.recorder)
        noise = host_noise(self.seed_of(number), engine.plan.prefix_chunks)
        prefix = clean[:, :, : part.prefix_frames].clone() if part.prefix_frames else None
        x, cache = self.x[:, :, frames], None
        asked: Denoiser = denoiser
        if self.measured is not None and number == 0:
            asked = self.measured.around(denoiser, denoiser.guided.remembered.rewind)
        if self.clones:
            cache = BranchedCache(denoiser.kv_spec(x), engine.kv, engine.plan)
        try:
            return generate(asked, engine, x, prefix=prefix, noise_source=noise, observe=self.progress, cache=cache)
        finally:
            self.keep(self.recorder)

    def seed_of(self, window: int) -> int:
        """The host's own seed rule; later windows draw far from earlier ones."""
        return (self.seed + 1_000_003 * window) % 2**64

    def make_room(self) -> None:
        if self.choice.attention != "bidirectional" and self.engines[0].kv.device != "cpu":
            spec = kv_spec(self.model, self.x.shape, self.branches.count, self.x.device)
            needed = max(
                run_bytes(spec, one.kv, one.plan, one.sparse is not None)
                + mask_memory(one.sparse, spec, one.plan, one.kv)
                for one in self.engines
            )
            make_room(self.guider.model_patcher, self.x.device, needed)


def engine_settings(
    choice: PlanChoice,
    part: VideoWindow,
    schedule: Schedule,
    settings: FlowCacheSettings,
    guider: Any,
) -> EngineSettings:
    """What the model carries and the sampler's fields together. Errors name the node whose field does not fit."""
    reuse, conds = reuse_fields(settings, schedule, guider.model_patcher), guider.conds
    if choice.attention == "bidirectional":
        with naming("KV Cache Compressor"):
            accepted = "no KV Cache Compressor with attention bidirectional, which keeps no K/V"
            require(settings.kv is None, "budget", settings.kv and settings.kv.budget, accepted)
    if choice.attention != "block-causal":
        with naming("AR Prompt Schedule"):
            accepted = f"no AR Prompt Schedule with attention {choice.attention}, where one prompt holds for all chunks"
            later = starts(conds)[1:]
            require(not later, "start_2", later[:1], accepted)
    plan, recache = choice.plan(part, schedule.steps), frozenset[int]()
    switches = frozenset(starts(conds)[1:]) if choice.released and choice.released.recache else recached(conds)
    if switches:
        with naming("AR Prompt Schedule"):
            accepted = "off with this plan; on with plan blockwise of the whole video"
            require(plan.name == "blockwise", "recache", True, accepted)
        recache = frozenset(chunk for chunk in switches if plan.prefix_chunks <= chunk < len(plan.chunks))
    engine = EngineSettings(
        plan=plan,
        schedule=schedule,
        solver=choice.solver,
        kv=kv_of(choice, settings, cuts(conds)),
        clean_pass=choice.clean_pass,
        attention=choice.attention,
        joint_frames=choice.joint_frames,
        prefix_noise=choice.prefix_noise,
        recache=recache,
        **reuse,
    )
    return with_attention(engine, settings.sparse)


def kv_of(choice: PlanChoice, settings: FlowCacheSettings, shots: tuple[int, ...]) -> KVSettings:
    """What the KV Cache Compressor chose, or what a released model keeps; SettingError when these are two things."""
    own = choice.released.kv(shots) if choice.released else KVSettings()
    if own.budget is None:
        return settings.kv_settings
    if settings.kv is None:
        return own
    assert choice.released is not None and own.compressor is not None
    with naming("KV Cache Compressor"):
        same = settings.kv.budget == own.budget and settings.kv.compressor == own.compressor
        found = f"{settings.kv.budget} with {settings.kv.compressor and settings.kv.compressor.name}"
        sink = getattr(own.compressor, "sink", None)
        method = own.compressor.name + (f", sink {sink:g}" if sink else "")
        method += ", reposition on" if getattr(own.compressor, "reposition", False) else ""
        accepted = f"{own.budget:g} with {method}, as {choice.released.title} was released; or another plan"
        require(same, "budget", Found(found), accepted)
    return settings.kv


def check(model: Any, latents: Tensor, options: Mapping[str, Any], released: Released | None = None) -> None:
    """SettingError naming what cannot be sampled chunk by chunk."""
    transformer = model.diffusion_model
    kind = type(transformer)
    require(kind in (WanModel, CausalWanModel), "model", kind.__name__, WAN)
    require(isinstance(model.model_sampling, CONST), "model", "a model that is not flow matching", WAN)
    shape = tuple(latents.shape)
    accepted = "video latents [B, C, F, H, W], from Empty AR Video Latent"
    require(latents.ndim == 5, "latent_image", shape, accepted)
    channels = transformer.in_dim
    require(shape[1] == channels, "latent_image", shape, f"{channels} channels, as this model takes")
    if released is not None:
        released.check_size(transformer.dim, len(transformer.blocks))
    refuse_clashes(options, clones=True)
    refuse_one_graph(options)


def reserve(guider: Any, choice: PlanChoice, latent_image: Tensor, sigmas: Tensor) -> None:
    """Before the model is loaded: refuse what cannot be sampled and tell the host about the K/V."""
    model, settings = guider.model_patcher.model, settings_of(guider.model_options)
    check(model, latent_image, guider.model_options, choice.released)
    steps, frames, kv = max(1, len(sigmas) - 1), latent_image.shape[2], kv_of(choice, settings, cuts(guider.conds))
    plans = [choice.plan(part, steps) for part in choice.windows(frames, 0)]
    needed, sparse = 0, settings.sparse
    if choice.attention != "bidirectional":
        spec = kv_spec(model, latent_image.shape, branch_bound(guider), latent_image.device)
        with naming("KV Cache Compressor"):
            stored = [run_bytes(spec, kv, plan, sparse is not None) for plan in plans]
        if kv.device != "cpu":
            needed = max(size + mask_memory(sparse, spec, plan, kv) for size, plan in zip(stored, plans, strict=True))
    together = {"block-causal": choice.chunk_frames, "joint": max(max_active_frames(plan) for plan in plans)}
    announce(guider, together.get(choice.attention, max(plan.frames for plan in plans)), needed)


def branch_bound(guider: Any) -> int:
    """At most this many K/V branches, as far as can be told before the guider has run."""
    conds = guider.conds
    if math.isclose(getattr(guider, "cfg", 0.0), 1.0) and "positive" in conds:
        conds = {"positive": conds["positive"]}
    return max(1, sum(len(entries) for entries in conds.values()))
