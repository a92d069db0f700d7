"""The one loop: at each tick some chunks take one denoising step each, computed or reused, over the K/V before them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..denoiser import ChunkInput, Denoiser
from ..errors import require, require_finite, require_finite_values
from ..fields import require_types
from ..kv.cache import KVCache
from ..kv.settings import KVSettings
from ..plan.base import Chunk, Plan, Tick
from ..plan.staggered import timestep_rows
from ..report.events import (
    CacheCompressed,
    CacheKind,
    CachePass,
    ChunkFinished,
    Event,
    RunFinished,
    RunStarted,
    StepTaken,
    WindowPass,
)
from ..reuse.base import Decision, Reason, ReusePolicy
from ..reuse.never import Never
from ..reuse.quantity import Computed, Quantity, Velocity
from ..schedule import Schedule
from ..solvers.base import NoiseSource, Solver, SolverState
from ..solvers.euler import Euler
from .finite import FiniteWatch

ATTENTION = ("block-causal", "bidirectional")


@dataclass(frozen=True)
class EngineSettings:
    """Everything that shapes a run except the model, the noise and the seed.

    clean_pass: re-encode a finished chunk at timestep ``clean_timestep`` so that its K/V holds no leftover noise
    (what Self-Forcing and MAGI-1 do); False leaves the K/V of its last computed step (what FlowCache does).
    attention: "block-causal" runs chunk by chunk against the K/V cache; "bidirectional" runs the whole window in one
    forward per tick, without K/V (SkyReels-V2's released model).
    prefix_noise: noise level at which the model sees prefix chunks, and is told so; the latents themselves stay clean.
    Redrawn at every window pass; with K/V it is drawn once, when the prefix is written.
    recache: chunks, each alone when it begins, before which the kept history is computed again under their prompt.
    reuse_device: where computed steps (latents, velocity, increment, residual) are kept until they are reused; None for
    the latents' own device.
    """

    plan: Plan
    schedule: Schedule
    solver: Solver = Euler()
    policy: ReusePolicy = Never()
    quantity: Quantity = Velocity()
    kv: KVSettings = KVSettings()
    clean_pass: bool = False
    clean_timestep: float = 0.0
    attention: str = "block-causal"
    prefix_noise: float = 0.0
    recache: frozenset[int] = frozenset()
    reuse_device: str | None = None

    def __post_init__(self) -> None:
        require_types(self)
        steps = self.plan.steps
        require(self.schedule.steps == steps, "steps", self.schedule.steps, f"the plan's {steps} steps")
        require(self.attention in ATTENTION, "attention", self.attention, " or ".join(ATTENTION))
        require_finite("prefix_noise", self.prefix_noise, minimum=0.0, maximum=1.0)
        if self.attention == "bidirectional":
            require(self.kv.budget is None, "budget", self.kv.budget, "None: bidirectional attention keeps no K/V")
            require(not self.clean_pass, "clean_pass", True, "False: bidirectional attention keeps no K/V")
            accepted = "velocity, increment or a forecast: a whole window hands out no residual per chunk"
            require(not self.quantity.needs_residual, "reused quantity", self.quantity.name, accepted)
            require(not self.recache, "recache", sorted(self.recache), "none: bidirectional attention keeps no K/V")
        first, last = self.plan.first_tick, self.plan.last_tick
        for chunk in self.recache:
            alone = chunk in first and last.get(chunk - 1, -1) < first[chunk]
            require(alone, "recache", chunk, "a chunk that begins after the one before is done (plan blockwise)")

    def computes_all(self, tick: int) -> bool:
        """Whether no chunk may reuse at this tick."""
        return self.policy.last_tick and tick == len(self.plan.ticks) - 1

    def notes(self) -> tuple[str, ...]:
        """One sentence for every setting that cannot help in this run."""
        found = (self.policy.note(self.plan.steps), self.kv.note(self.plan))
        return tuple(note for note in found if note)


@dataclass
class ActiveChunk:
    """One chunk's state in a run.

    gap: the steps reused since the last computed one. resume: latents and solver behind that one, from where a quantity
    that corrects goes through the gap again.
    """

    chunk: Chunk
    latents: Tensor
    solver: SolverState
    history: deque[Computed]
    gap: list[ChunkInput] = field(default_factory=list)
    resume: tuple[Tensor, SolverState] | None = None


@dataclass
class Run:
    """All state of one run; made when sampling starts, released in ``finally``."""

    denoiser: Denoiser
    settings: EngineSettings
    latents: Tensor
    noise: NoiseSource
    observe: Callable[[Event], None]
    cache: KVCache | None = None
    active: dict[int, ActiveChunk] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    denoiser_seconds: float = 0.0
    finite: FiniteWatch = field(default_factory=FiniteWatch)

    def __post_init__(self) -> None:
        self.plan, self.schedule = self.settings.plan, self.settings.schedule
        self.policy = self.settings.policy.begin(self.schedule, self.denoiser)
        self.branches = range(self.denoiser.branches)
        self.tokens_per_frame = self.denoiser.kv_spec(self.latents).tokens_per_frame
        bidirectional = self.settings.attention == "bidirectional"
        self.rows = timestep_rows(self.plan, self.schedule.timesteps) if bidirectional else ()
        # The largest piece of memory comes last, when nothing above can refuse the run any more.
        if self.cache is None and not bidirectional:
            self.cache = KVCache(self.denoiser.kv_spec(self.latents), self.settings.kv, self.plan)

    # -- passes over the model ---------------------------------------------------------------------------------------

    def begin_chunk(self, chunk: Chunk, tick: int) -> None:
        """Reserve the chunk's K/V slot, compressing the clean region when there is no room for it."""
        if self.cache is None:
            return
        if chunk.index in self.settings.recache:
            self.recache(chunk)
        begun = time.perf_counter()
        need = self.cache.begin(chunk)
        if need is not None:
            seconds = time.perf_counter() - begun
            self.observe(CacheCompressed(tick, chunk.index, need.tokens_before, need.tokens_after, seconds))

    def recache(self, chunk: Chunk) -> None:
        """Compute the newest whole chunks of history that fit beside ``chunk`` again, under its prompt (LongLive)."""
        assert self.cache is not None
        room = min(layout.capacity for layout in self.cache.layouts) // self.tokens_per_frame - chunk.frames
        kept = [c for c in self.plan.chunks[: chunk.index] if chunk.first_frame - c.first_frame <= room]
        self.cache.forget()
        for earlier in kept:
            self.cache.begin(earlier)
            timestep = self.settings.clean_timestep
            self.cache_pass("recache", earlier, self.frames(earlier), timestep, prompt_from=chunk.index)
            self.cache.commit(earlier)

    def cache_pass(
        self, kind: CacheKind, chunk: Chunk, latents: Tensor, timestep: float, prompt_from: int | None = None
    ) -> None:
        """A forward whose velocity is dropped: it only (re)writes the chunk's K/V."""
        assert self.cache is not None
        begun = time.perf_counter()
        item = ChunkInput(chunk, self.plan.steps, 0.0, timestep, latents, prompt_from)
        self.denoiser.compute(item, self.branches, self.cache)
        seconds = time.perf_counter() - begun
        self.denoiser_seconds += seconds
        tokens = chunk.frames * self.tokens_per_frame
        context = self.cache.context_tokens(chunk)
        self.observe(CachePass(kind, chunk.index, len(self.branches), tokens, context, seconds))

    def prefix(self) -> None:
        """Write the K/V of the chunks that are given clean."""
        if self.cache is None:
            return
        for chunk in self.plan.chunks[: self.plan.prefix_chunks]:
            self.begin_chunk(chunk, 0)
            noise = self.settings.prefix_noise
            timestep = 1000 * noise if noise else self.settings.clean_timestep
            self.cache_pass("prefix", chunk, self.noisy_prefix(chunk, 0), timestep)
            self.cache.commit(chunk)

    def noisy_prefix(self, chunk: Chunk, tick: int) -> Tensor:
        """A prefix chunk as the model sees it."""
        clean, level = self.frames(chunk), self.settings.prefix_noise
        return torch.lerp(clean, self.noise(chunk.index, tick, clean), level) if level else clean

    def window_pass(self, tick: Tick) -> Tensor:
        """One bidirectional forward; idle chunks stand where :func:`timestep_rows` puts them."""
        latents, times = self.latents, list(self.rows[tick.index])
        if self.settings.prefix_noise and self.plan.prefix_chunks:
            latents = latents.clone()
            for chunk in self.plan.chunks[: self.plan.prefix_chunks]:
                latents[:, :, chunk.first_frame : chunk.end_frame] = self.noisy_prefix(chunk, tick.index)
                times[chunk.index] = 1000 * self.settings.prefix_noise
        timesteps = [t for chunk, t in zip(self.plan.chunks, times, strict=True) for _ in range(chunk.frames)]
        begun = time.perf_counter()
        velocity = self.denoiser.window(latents, timesteps, self.branches)
        seconds = time.perf_counter() - begun
        self.denoiser_seconds += seconds
        sizes = tuple(chunk.frames * self.tokens_per_frame for chunk in self.plan.chunks)
        self.observe(WindowPass(tick.index, len(self.branches), sizes, seconds))
        return velocity

    # -- steps -------------------------------------------------------------------------------------------------------

    def frames(self, chunk: Chunk) -> Tensor:
        return self.latents[:, :, chunk.first_frame : chunk.end_frame]

    def tick(self, tick: Tick) -> None:
        for step in tick.steps:
            if step.step == 0:
                self.begin_chunk(self.plan.chunks[step.chunk], tick.index)
                self.activate(self.plan.chunks[step.chunk])
        items = [self.item(step.chunk, step.step) for step in tick.steps]
        decisions = self.policy.decide(items)
        if self.settings.computes_all(tick.index):
            decisions = self.override(items, decisions, "last step")
        window = None
        if self.settings.attention == "bidirectional" and not all(d.reuses for d in decisions):
            window = self.window_pass(tick)
            decisions = self.override(items, decisions, "window pass")  # computed along with the whole window
        for item, decision in zip(items, decisions, strict=True):
            self.step(item, decision, tick, window)
        self.finite.send()
        for event in self.finite.arrived():
            self.observe(event)
        for item in items:
            if item.step == self.plan.steps - 1:
                self.finish(item.chunk, tick)

    def override(self, items: list[ChunkInput], decisions: list[Decision], reason: Reason) -> list[Decision]:
        return [self.policy.override(item, d, reason) for item, d in zip(items, decisions, strict=True)]

    def activate(self, chunk: Chunk) -> None:
        state = self.settings.solver.begin(self.schedule, chunk.index, self.noise)
        history: deque[Computed] = deque(maxlen=self.settings.quantity.keep)
        self.active[chunk.index] = ActiveChunk(chunk, self.frames(chunk).clone(), state, history)

    def item(self, chunk: int, step: int) -> ChunkInput:
        active = self.active[chunk]
        sigma, timestep = self.schedule.sigmas[step], self.schedule.timesteps[step]
        return ChunkInput(active.chunk, step, sigma, timestep, active.latents)

    def step(self, item: ChunkInput, decision: Decision, tick: Tick, window: Tensor | None) -> None:
        begun = time.perf_counter()
        active = self.active[item.chunk.index]
        quantity = self.settings.quantity
        residual = None
        if decision.reuses:
            sigma_next = self.schedule.sigmas[item.step + 1]
            velocity = quantity.velocity(tuple(active.history), item, sigma_next, self.denoiser)
            velocity = velocity.to(item.latents.device)
            if quantity.needs_residual:
                self.denoiser_seconds += time.perf_counter() - begun
        elif window is not None:
            velocity = window[:, :, :, item.chunk.first_frame : item.chunk.end_frame]
        else:
            assert self.cache is not None
            output = self.denoiser.compute(item, self.branches, self.cache, keep_residual=quantity.needs_residual)
            velocity, residual = output.velocity, output.residual
            self.denoiser_seconds += time.perf_counter() - begun
        if decision.reuses:
            active.gap.append(item)
        elif active.gap:
            item = self.close_gap(active, item, velocity)
        self.advance(active, item, velocity)
        if not decision.reuses:
            self.remember(active, item, velocity, residual)
        if self.settings.attention == "bidirectional":
            self.frames(item.chunk).copy_(active.latents)
        self.finite.note((tick.index, item.chunk.index, item.step), velocity, active.latents)
        self.report(item, decision, tick, window is None, time.perf_counter() - begun)

    def advance(self, active: ActiveChunk, item: ChunkInput, velocity: Tensor) -> None:
        """One solver step from ``item.latents``; frames of the chunk that are given stay as they are."""
        active.latents = active.solver.step(item.latents, self.denoiser.guide(velocity, item), item.step)
        if self.plan.held_frames and item.chunk.index == self.plan.prefix_chunks:
            held = self.plan.held_frames
            active.latents[:, :, :held] = self.frames(item.chunk)[:, :, :held]

    def close_gap(self, active: ActiveChunk, item: ChunkInput, velocity: Tensor) -> ChunkInput:
        """The computed step ``item``, from where its reused predecessors lead when gone through again knowing it."""
        quantity = self.settings.quantity
        if active.resume is not None:
            nodes = [*((one.item.sigma, one.velocity.to(velocity)) for one in active.history), (item.sigma, velocity)]
            active.latents, active.solver = active.resume
            for reused in active.gap:
                here = replace(reused, latents=active.latents)
                self.advance(active, here, quantity.between(nodes, reused.sigma))
            item = replace(item, latents=active.latents)
        active.gap.clear()
        return item

    def remember(self, active: ActiveChunk, item: ChunkInput, velocity: Tensor, residual: Tensor | None) -> None:
        increment = active.latents - item.latents
        computed = Computed(item, velocity, increment, residual)
        active.history.append(computed.to(self.settings.reuse_device))
        if self.settings.quantity.corrects:
            active.resume = (active.latents, copy(active.solver))
        self.policy.observe(item, velocity)

    def report(self, item: ChunkInput, decision: Decision, tick: Tick, chunkwise: bool, seconds: float) -> None:
        context = kv_tokens = 0
        if self.cache is not None:
            kv_tokens = self.cache.tokens
            if chunkwise and not decision.reuses:
                context = self.cache.context_tokens(item.chunk)
        self.observe(
            StepTaken(
                tick=tick.index,
                chunk=item.chunk.index,
                step=item.step,
                sigma=item.sigma,
                action=decision.action,
                reason=decision.reason,
                distance=decision.distance,
                accumulated=decision.accumulated,
                branches=len(self.branches),
                tokens=item.chunk.frames * self.tokens_per_frame,
                context_tokens=context,
                kv_tokens=kv_tokens,
                seconds=seconds,
            )
        )

    def finish(self, chunk: Chunk, tick: Tick) -> None:
        done = self.active.pop(chunk.index)
        self.policy.finish(chunk.index)
        self.frames(chunk).copy_(done.latents)
        if self.cache is not None:
            if self.settings.clean_pass and chunk.index != self.plan.chunks[-1].index:
                self.cache_pass("clean", chunk, done.latents, self.settings.clean_timestep)
            self.cache.commit(chunk)
        self.observe(ChunkFinished(tick.index, chunk.index, chunk.first_frame, done.latents))

    # -- whole run ---------------------------------------------------------------------------------------------------

    def execute(self) -> Tensor:
        settings, cache, kv = self.settings, self.cache, self.settings.kv
        self.observe(
            RunStarted(
                plan=self.plan.name,
                chunks=len(self.plan.chunks),
                prefix_chunks=self.plan.prefix_chunks,
                steps=self.plan.steps,
                total_steps=self.plan.total_steps,
                kv_bytes=0 if cache is None else cache.peak_bytes,
                kv_tokens=0 if cache is None else cache.capacity_tokens,
                budget_tokens=None if cache is None or kv.budget is None else cache.budget_tokens,
                notes=settings.notes(),
                attention=settings.attention,
            )
        )
        self.prefix()
        for tick in self.plan.ticks:
            self.tick(tick)
        for event in self.finite.rest():
            self.observe(event)
        seconds = time.perf_counter() - self.started
        self.observe(RunFinished(seconds, seconds - self.denoiser_seconds))
        return self.latents

    def release(self) -> None:
        """Drop every tensor of the run."""
        self.active.clear()
        if self.cache is not None:
            self.cache.release()


def seeded_noise(seed: int) -> NoiseSource:
    """Standard normal noise that depends on (seed, chunk, step) alone, not on the order of calls or a global state."""

    def draw(chunk: int, step: int, like: Tensor) -> Tensor:
        generator = torch.Generator(device="cpu").manual_seed((seed * 1_000_003 + chunk * 1009 + step) % 2**63)
        return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like)

    return draw


@torch.no_grad()
def generate(
    denoiser: Denoiser,
    settings: EngineSettings,
    noise: Tensor,
    *,
    prefix: Tensor | None = None,
    noise_source: NoiseSource | None = None,
    observe: Callable[[Event], None] = lambda event: None,
    cache: KVCache | None = None,
) -> Tensor:
    """Denoise one window of a video.

    noise: standard normal ``[B, C, F, H, W]``, F = the plan's latent frames. prefix: clean latents of the plan's prefix
    frames. noise_source: for solvers that re-noise and for ``prefix_noise`` (default: seeded with 0). cache: only to
    bring one's own (a counting one, say). Returns clean latents ``[B, C, F, H, W]``. Raises SettingError when shapes do
    not fit the plan, or noise or prefix hold NaN or infinite values. A run whose values stop being finite goes on to
    its end; the observer is told (:class:`..report.events.NotFinite`).
    """
    plan = settings.plan
    require(noise.ndim == 5, "noise", tuple(noise.shape), "a tensor [B, C, F, H, W]")
    require(noise.shape[2] == plan.frames, "latent frames", noise.shape[2], f"the plan's {plan.frames}")
    prefix_frames = plan.prefix_frames
    given = 0 if prefix is None else prefix.shape[2]
    require(given == prefix_frames, "prefix frames", given, f"the plan's {prefix_frames}")
    require_finite_values("noise", noise)
    latents = noise.clone()
    if prefix is not None:
        require_finite_values("prefix", prefix)
        expected = (*noise.shape[:2], prefix_frames, *noise.shape[3:])
        require(tuple(prefix.shape) == expected, "prefix", tuple(prefix.shape), f"shape {expected}")
        latents[:, :, :prefix_frames] = prefix
    run = Run(denoiser, settings, latents, noise_source or seeded_noise(0), observe, cache)
    try:
        return run.execute()
    finally:
        run.release()
