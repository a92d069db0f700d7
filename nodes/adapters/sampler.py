"""The SAMPLER: a plan, run by the core's engine over the host's own model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.samplers
from comfy.ldm.wan.ar_model import CausalWanModel
from comfy.ldm.wan.model import WanModel
from comfy.model_sampling import CONST
from torch import Tensor

from ...flowcache_core.engine import EngineSettings, generate
from ...flowcache_core.errors import require
from ...flowcache_core.plan import blockwise, staggered, window
from ...flowcache_core.plan.base import Plan
from ...flowcache_core.plan.staggered import Window, overlap_windows
from ...flowcache_core.report.record import Recorder
from ...flowcache_core.schedule import Schedule, from_sigmas
from ...flowcache_core.solvers import SOLVERS, Solver
from ...flowcache_core.solvers.renoise import host_noise
from . import prefix
from .branches import Branches, names_that_run
from .denoiser import HostDenoiser, Inpaint, kv_spec
from .kv_size import allocated_bytes
from .memory import announce, make_room
from .naming import naming
from .progress import Progress
from .rope import exact_positions
from .settings import FlowCacheSettings, refuse_other_caches, settings_of

_CALLBACK = "flowcache_callback"


def _blockwise(choice: PlanChoice, frames: int, steps: int, prefix_frames: int) -> Plan:
    return blockwise(frames, choice.chunk_frames, steps, prefix_frames)


def _staggered(choice: PlanChoice, frames: int, steps: int, prefix_frames: int) -> Plan:
    return staggered(frames, choice.chunk_frames, steps, choice.ar_step, prefix_frames)


def _window(choice: PlanChoice, frames: int, steps: int, prefix_frames: int) -> Plan:
    return window(frames, choice.chunk_frames, steps, choice.window_chunks, prefix_frames)


PLANS: dict[str, Callable[[PlanChoice, int, int, int], Plan]] = {
    "blockwise": _blockwise,
    "diffusion forcing": _staggered,
    "sliding window": _window,
}


@dataclass(frozen=True)
class PlanChoice:
    """The sampler node's fields. Frames are latent frames; ``window_frames`` 0 stands for the whole video."""

    name: str
    chunk_frames: int
    solver: Solver
    clean_pass: bool
    ar_step: int = 0
    window_chunks: int = 1
    attention: str = "block-causal"
    window_frames: int = 0
    overlap_frames: int = 0

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> PlanChoice:
        values = dict(fields)
        name, solver = values.pop("plan"), values.pop("solver")
        require(name in PLANS, "plan", name, ", ".join(PLANS))
        require(solver in SOLVERS, "solver", solver, ", ".join(SOLVERS))
        choice = cls(name, solver=SOLVERS[solver](), **values)
        if choice.attention == "bidirectional":
            require(not choice.clean_pass, "clean_pass", True, "off with attention bidirectional, which keeps no K/V")
        return choice

    def windows(self, frames: int, prefix_frames: int) -> tuple[Window, ...]:
        """The windows of a video; its own clean prefix belongs to the first one."""
        if not self.window_frames:
            return (Window(0, frames, prefix_frames),)
        first, *others = overlap_windows(frames, self.window_frames, self.overlap_frames, self.chunk_frames)
        most = f"fewer than the {first.frames} latent frames of a window"
        require(prefix_frames < first.frames, "prefix frames", prefix_frames, most)
        return (Window(0, first.frames, prefix_frames), *others)

    def plan(self, part: Window, steps: int) -> Plan:
        return PLANS[self.name](self, part.frames, steps, part.prefix_frames)


class ChunkSampler(comfy.samplers.KSAMPLER):
    """A host SAMPLER without state of its own: everything a run needs is made in :meth:`run`."""

    def __init__(self, node: str, choice: PlanChoice, latent: Any = None, prefix_frames: int = 0) -> None:
        super().__init__(self.run)
        self.node, self.choice = node, choice
        self.given = None if latent is None else prefix.given_latents(latent, prefix_frames)

    def reserve(self, guider: Any, latent_image: Tensor, sigmas: Tensor) -> None:
        """Before the model is loaded: check what can be checked and announce the K/V."""
        with naming(self.node):
            model, settings = guider.model_patcher.model, settings_of(guider.model_options)
            check(model, latent_image, guider.model_options)
            if self.choice.attention == "block-causal":
                steps = max(1, len(sigmas) - 1)
                plans = [self.choice.plan(part, steps) for part in self.choice.windows(latent_image.shape[2], 0)]
                spec = kv_spec(model, latent_image.shape, branch_bound(guider), latent_image.device)
                kv = settings.kv_settings
                needed = 0 if kv.device == "cpu" else max(allocated_bytes(spec, kv, plan) for plan in plans)
                announce(guider, self.choice.chunk_frames, needed)

    def sample(self, model_wrap, sigmas, extra_args, callback, *args, **kwargs):  # type: ignore[no-untyped-def]
        """As the host calls it. Its own callback takes no total but the number of sigmas, so ours goes another way."""
        return super().sample(model_wrap, sigmas, {**extra_args, _CALLBACK: callback}, None, *args, **kwargs)

    def run(
        self, model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, disable: bool | None
    ) -> Tensor:
        """The sampler function. x: ``[B, C, F, H, W]`` at the first noise level; returns it at the last one."""
        guider, options = model.inner_model, extra_args["model_options"]
        with naming(self.node):
            check(guider.inner_model, x, options)
            schedule = from_sigmas(sigmas.tolist())
            mask = extra_args.get("denoise_mask")
            known = self.prefix(model, x, options, mask)
            known_frames = 0 if known is None else known.shape[2]
            inpaint = None
            if mask is not None and bool((mask[:, :, known_frames:] != 1).any()):
                inpaint = Inpaint(mask.expand(x.shape), model.latent_image, model.noise, sigmas)
            windows = self.choice.windows(x.shape[2], known_frames)
            settings = settings_of(options)
            plans = [self.engine_settings(part, schedule, settings, guider.conds) for part in windows]
            branches = self.branches(guider, x, schedule, options)
            if self.choice.attention == "block-causal":
                spec = kv_spec(guider.inner_model, x.shape, branches.count, x.device)
                needed = (
                    0
                    if settings.kv_settings.device == "cpu"
                    else max(allocated_bytes(spec, p.kv, p.plan) for p in plans)
                )
                make_room(guider.model_patcher, x.device, needed)
            progress = Progress(
                total=sum(engine.plan.total_steps for engine in plans),
                clean=x.new_zeros(x.shape),
                noisy=x,
                callback=extra_args.get(_CALLBACK),
                ends_clean=schedule.sigmas[-1] == 0,
                disable=bool(disable),
            )
            output = x.clone()
            if known is not None:
                output[:, :, :known_frames] = progress.clean[:, :, :known_frames] = known
            try:
                with exact_positions(guider.inner_model.diffusion_model):
                    for number, (part, engine) in enumerate(zip(windows, plans, strict=True)):
                        frames = slice(part.first_frame, part.end_frame)
                        progress.offset = part.first_frame
                        denoiser = HostDenoiser(
                            guider=guider,
                            model_options=options,
                            seed=extra_args.get("seed"),
                            all_branches=branches,
                            clean=progress.clean[:, :, frames],
                            leftover=schedule.sigmas[-1] > 0,
                            inpaint=inpaint and inpaint.of(frames),
                        )
                        prefix_latents = progress.clean[:, :, frames][:, :, : part.prefix_frames]
                        recorder = Recorder.of(engine)
                        try:
                            output[:, :, frames] = generate(
                                denoiser,
                                engine,
                                x[:, :, frames],
                                prefix=prefix_latents.clone() if part.prefix_frames else None,
                                noise_source=noise_of(extra_args.get("seed"), number, engine.plan),
                                observe=lambda event: (recorder(event), progress(event)),
                            )
                        finally:
                            settings.slot.keep(recorder)
            finally:
                progress.close()
        return output

    def prefix(self, model: Any, x: Tensor, options: Any, mask: Tensor | None) -> Tensor | None:
        """The clean leading frames ``[B, C, frames, H, W]``, processed for the model, from whichever place has them."""
        base = model.inner_model.inner_model
        masked = prefix.masked_frames(mask)
        image = prefix.start_image(options)
        sources = [
            name
            for name, found in (
                ("prefix of this node", self.given is not None),
                ("the start image of AR Video I2V", image is not None),
                ("a noise mask that keeps the first frames", masked > 0),
            )
            if found
        ]
        require(len(sources) <= 1, "prefix", " and ".join(sources), "one of them")
        if masked:
            require(masked < x.shape[2], "noise mask", "every frame kept", "a mask that leaves frames to be made")
            return model.latent_image[:, :, :masked]
        latents = image if self.given is None else self.given
        return None if latents is None else prefix.fitted(latents, base, x)

    def engine_settings(
        self, part: Window, schedule: Schedule, settings: FlowCacheSettings, conds: Mapping[str, Any]
    ) -> EngineSettings:
        reuse, kv = settings.reuse, settings.kv_settings
        steps = schedule.steps
        chosen: dict[str, Any] = {}
        if reuse is not None:
            with naming("FlowCache Chunkwise Reuse"):
                reuse.policy.note(steps)
            chosen = {"policy": reuse.policy, "quantity": reuse.quantity, "reuse_device": reuse.device}
        return EngineSettings(
            plan=self.choice.plan(part, steps),
            schedule=schedule,
            solver=self.choice.solver,
            kv=kv,
            clean_pass=self.choice.clean_pass,
            attention=self.choice.attention,
            **chosen,
        )

    def branches(self, guider: Any, x: Tensor, schedule: Schedule, options: Mapping[str, Any]) -> Branches:
        sigmas = (*schedule.sigmas[:-1], 0.0)
        names = names_that_run(guider, x[:, :, : self.choice.chunk_frames], sigmas, options)
        return Branches(guider.conds, names, sigmas, guider.inner_model.model_sampling)


def check(model: Any, latents: Tensor, options: Mapping[str, Any]) -> None:
    """SettingError naming what cannot be sampled chunk by chunk."""
    transformer = model.diffusion_model
    kind = type(transformer)
    wan = "a Wan 2.1 text-to-video model (Self-Forcing, Causal-Forcing, SkyReels-V2 DF ...)"
    require(kind in (WanModel, CausalWanModel), "model", kind.__name__, wan)
    require(isinstance(model.model_sampling, CONST), "model", "a model that is not flow matching", wan)
    shape = tuple(latents.shape)
    accepted = "video latents [B, C, F, H, W], from Empty AR Video Latent"
    require(latents.ndim == 5, "latent_image", shape, accepted)
    channels = transformer.in_dim
    require(shape[1] == channels, "latent_image", shape, f"{channels} channels, as this model takes")
    refuse_other_caches(options)
    for key, name in (("context_handler", "context windows"), ("multigpu_clones", "several GPUs")):
        require(
            key not in options, "model", f"a model with {name}", f"one without: chunks and {name} exclude each other"
        )


def noise_of(seed: int | None, window_number: int, plan: Plan) -> Any:
    """The host's own seed rule; later windows are shifted out of the way of earlier ones."""
    return host_noise(((seed or 0) + 1_000_003 * window_number) % 2**64, plan.prefix_chunks)


def branch_bound(guider: Any) -> int:
    """At most this many K/V branches, as far as can be told before the guider has run."""
    conds = guider.conds
    if math.isclose(getattr(guider, "cfg", 0.0), 1.0) and "positive" in conds:
        conds = {"positive": conds["positive"]}
    return max(1, sum(len(entries) for entries in conds.values()))
