"""The one loop: at each tick some chunks take one denoising step each, computed or reused, over the K/V before them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..denoiser import ChunkInput, ChunkOutput, Denoiser
from ..errors import require, require_finite_values
from ..kv.cache import KVCache
from ..kv.headed import cache_of
from ..noise import NoiseSource, seeded_noise
from ..plan.base import Chunk, Tick
from ..report.events import ChunkFinished, Event, RunFinished, RunStarted, StepTaken
from ..reuse.base import Decision, PolicyState, Reason
from ..reuse.read import OneRead
from ..rows import Rows
from ..sparse.run import SparseRun
from .chunk import ActiveChunk
from .finite import FiniteWatch
from .passes import Passes
from .places import PlaceCounts
from .settings import EngineSettings
from .settling import Settling


@dataclass
class Run:
    """All state of one run; made when sampling starts, released in ``finally``. kv_choice: what megabytes became.
    token_bytes: see ``RunStarted``."""

    denoiser: Denoiser
    settings: EngineSettings
    passes: Passes
    policy: PolicyState
    observe: Callable[[Event], None]
    token_bytes: int
    active: dict[int, ActiveChunk] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)
    finite: FiniteWatch = field(default_factory=FiniteWatch)
    reader: OneRead = field(default_factory=OneRead)
    first_low: Tensor | None = None
    kv_choice: str = ""
    settling: Settling | None = None
    places: PlaceCounts = field(init=False)

    def __post_init__(self) -> None:
        self.places = PlaceCounts(self.settings.plan.steps)
        self.policy.read_with(self.reader)

    @classmethod
    def begin(
        cls,
        denoiser: Denoiser,
        settings: EngineSettings,
        latents: Tensor,
        noise: NoiseSource,
        observe: Callable[[Event], None],
        cache: KVCache | None,
        following: Callable[[PolicyState], PolicyState] = lambda state: state,
    ) -> Run:
        """latents: the window, written to by the run."""
        policy = following(settings.policy.begin(settings.schedule, denoiser))
        spec = denoiser.kv_spec(latents)
        # The largest piece of memory comes last, when nothing above can refuse the run any more.
        if cache is None and settings.attention != "bidirectional":
            cache = cache_of(spec, settings.kv, settings.plan)
        sparse = None
        if settings.sparse is not None and cache is not None:
            kv = settings.kv.settled(spec, settings.plan)
            sparse = SparseRun.begin(settings.sparse, spec, settings.plan, kv, settings.recache)
        passes = Passes(denoiser, settings, latents, noise, observe, cache, spec.tokens_per_frame, sparse)
        choice = "" if cache is None else settings.kv.choice(spec, settings.plan)
        settling = Settling.of(settings.kv, settings.plan.steps) if cache is not None else None
        one = 0 if cache is None else spec.token_bytes
        return cls(denoiser, settings, passes, policy, observe, one, kv_choice=choice, settling=settling)

    def execute(self) -> Tensor:
        cache = self.passes.cache
        bounded = cache is not None and self.settings.kv.bounded
        sizes = (0, 0) if cache is None else (cache.peak_bytes, cache.capacity_tokens)
        budget = cache.budget_tokens if cache and bounded else None
        started = RunStarted.of(self.settings, *sizes, budget, self.token_bytes)
        if self.kv_choice:
            started = replace(started, notes=(*started.notes, self.kv_choice))
        self.observe(started)
        self.passes.prefix()
        for tick in self.settings.plan.ticks:
            self.tick(tick)
        self.tell((*self.finite.rest(), *self.places.rest()))
        if self.passes.cache is not None:
            self.passes.cache.require_finite()
        if self.sparse is not None:
            self.tell(self.sparse.rest())
        seconds = time.perf_counter() - self.started
        self.observe(RunFinished(seconds, seconds - self.passes.seconds))
        return self.passes.latents

    def tick(self, tick: Tick) -> None:
        plan = self.settings.plan
        for step in tick.steps:
            if step.step == 0:
                self.passes.begin_chunk(plan.chunks[step.chunk], tick.index)
                self.activate(plan.chunks[step.chunk])
        items = [
            self.active[step.chunk].item(step.step, self.settings.schedule, self.frame_before(step.chunk))
            for step in tick.steps
        ]
        self.ask_drifts(items)
        decisions = self.policy.decide(items)
        if self.settings.computes_all(tick.index):
            decisions = self.override(items, decisions, "last step")
        window: Tensor | None = None
        joint: dict[int, ChunkOutput] = {}
        if self.settings.attention != "block-causal" and not all(decision.reuses for decision in decisions):
            decisions = self.override(items, decisions, "window pass")  # computed along with the others
            if self.passes.cache is None:
                window = self.passes.window(tick, items)
            else:
                joint = self.passes.joint(items)
        self.decide_masks(items, decisions)
        for item, decision in zip(items, decisions, strict=True):
            self.step(item, decision, tick, window, joint)
        self.finite.send()
        self.tell((*self.finite.arrived(), *self.places.arrived()))
        if self.sparse is not None:
            self.tell(self.sparse.arrived())
        for item in items:
            if item.step == plan.steps - 1:
                self.finish(item.chunk, tick)

    def tell(self, events: Iterable[Event]) -> None:
        for event in events:
            self.observe(event)

    @property
    def sparse(self) -> SparseRun | None:
        return self.passes.sparse

    def ask_drifts(self, items: list[ChunkInput]) -> None:
        """Have what mask reuse decides by read along with the policy's values."""
        drifts = None if self.sparse is None else self.sparse.drifts([(item.chunk, item.step) for item in items])
        if drifts is not None:
            self.reader.ride(drifts)

    def decide_masks(self, items: list[ChunkInput], decisions: list[Decision]) -> None:
        """Which attention masks serve again in the chunks that are computed now."""
        if self.sparse is None or self.sparse.masks is None or self.passes.cache is None:
            return
        steps = [(item.chunk, item.step) for item, d in zip(items, decisions, strict=True) if d.action == "compute"]
        self.sparse.decide(steps, self.passes.cache.layouts, self.reader.arrived())

    def override(self, items: list[ChunkInput], decisions: list[Decision], reason: Reason) -> list[Decision]:
        return [self.policy.override(item, d, reason) for item, d in zip(items, decisions, strict=True)]

    def activate(self, chunk: Chunk) -> None:
        settings, frames = self.settings, self.passes.frames(chunk)
        holds = settings.plan.held_frames if chunk.index == settings.plan.prefix_chunks else 0
        self.active[chunk.index] = ActiveChunk(
            chunk,
            frames.clone(),
            settings.solver.begin(settings.schedule, chunk.index, self.passes.noise),
            settings.quantity,
            self.denoiser.guide,
            held=frames[:, :, :holds].clone() if holds else None,
            keep_on=settings.reuse_device,
        )

    def frame_before(self, chunk: int) -> Tensor | None:
        """The last latent frame of the chunk before, as it stands: in work, finished or given."""
        if chunk == 0:
            return None
        at_work = self.active.get(chunk - 1)
        before = self.passes.frames(self.settings.plan.chunks[chunk - 1]) if at_work is None else at_work.latents
        return before[:, :, -1]

    def step(
        self,
        item: ChunkInput,
        decision: Decision,
        tick: Tick,
        window: Tensor | None,
        joint: Mapping[int, ChunkOutput],
    ) -> None:
        begun = time.perf_counter()
        active, passes = self.active[item.chunk.index], self.passes
        tokens, branches = item.chunk.frames * passes.tokens_per_frame, self.denoiser.branches
        if decision.reuses:
            velocity, taken, count = self.reused(item), item, 0
            active.take(item, velocity, computed=False)
        elif window is not None:
            velocity = window[:, :, :, item.chunk.first_frame : item.chunk.end_frame]
            taken, count = active.take(item, velocity, computed=True), tokens
        else:
            output = joint.get(item.chunk.index) or self.compute(item, decision.rows, tick)
            velocity, taken, count = output.velocity, item, tokens
            branches = branches if output.branches is None else output.branches
            if output.rows is not None:
                velocity, count = active.take_part(item, output, self.reused(item)), output.rows.share_of(tokens)
                self.places.part(item.chunk.index, output.rows)
            else:
                self.places.whole(item.chunk.index)
                decision = self.policy.override(item, decision, "whole only")
                taken = active.take(item, velocity, computed=True, residual=output.residual)
        if decision.action == "compute":
            self.policy.observe(taken, velocity)
        if self.settings.policy.reads_residual:
            self.policy.behind(item, active.history[-1])
        if passes.cache is None:
            passes.frames(item.chunk).copy_(active.latents)
        self.finite.note((tick.index, item.chunk.index, item.step), velocity, active.latents)
        if self.settling is not None:
            self.settling.note(item, self.denoiser.guide(velocity, item))
        alone = passes.cache is not None and not decision.reuses
        sees = self.settings.plan.chunks[max(joint, default=item.chunk.index)]
        self.observe(
            StepTaken.of(
                taken,
                decision,
                tick=tick.index,
                branches=branches,
                tokens=tokens,
                computed_tokens=count,
                context_tokens=passes.seen_tokens(sees) if alone else 0,
                kv_tokens=0 if passes.cache is None else passes.cache.tokens,
                seconds=time.perf_counter() - begun,
            )
        )

    def reused(self, item: ChunkInput) -> Tensor:
        """The velocity that a reused step takes."""
        begun = time.perf_counter()
        sigma_next = self.settings.schedule.sigmas[item.step + 1]
        velocity = self.active[item.chunk.index].reused_velocity(item, sigma_next, self.denoiser)
        self.passes.seconds += (time.perf_counter() - begun) if self.settings.quantity.needs_residual else 0.0
        return velocity

    def compute(self, item: ChunkInput, rows: Rows | None, tick: Tick) -> ChunkOutput:
        """The model on a chunk, or on some of its tokens. Those attend to everything: masks are of whole chunks."""
        begun = time.perf_counter()
        cache, keep = self.passes.cache, self.settings.quantity.needs_residual
        assert cache is not None
        if rows is not None:
            output = self.denoiser.compute(item, cache, keep_residual=keep, rows=rows)
        else:
            sparse = None if self.sparse is None else self.sparse.forward(item.chunk, item.step)
            thin = sparse is not None and sparse.leaves_out(cache.context_tokens(item.chunk))
            asked = replace(item, sparse=sparse) if thin else item
            output = self.denoiser.compute(asked, cache, keep_residual=keep)
            if self.sparse is not None and sparse is not None:
                self.sparse.leave(sparse, tick.index, cache.context_tokens(item.chunk))
        self.passes.seconds += time.perf_counter() - begun
        return output

    def finish(self, chunk: Chunk, tick: Tick) -> None:
        done = self.active.pop(chunk.index)
        self.policy.finish(chunk.index)
        latents = self.anchored(done)
        self.passes.frames(chunk).copy_(latents)
        if self.settling is not None and self.passes.cache is not None:
            change = self.settling.finish(chunk.index, latents, self.passes.tokens_per_frame)
            self.passes.cache.note_change(chunk, change)
        self.passes.finished(chunk, latents, tick.index)
        if self.sparse is not None:
            self.sparse.finish(chunk.index)
        self.places.finish(chunk)
        self.observe(ChunkFinished(tick.index, chunk.index, chunk.first_frame, latents))

    def anchored(self, done: ActiveChunk) -> Tensor:
        """A finished chunk's latents with what is put back of the first one that was denoised."""
        anchor = self.settings.anchor
        if anchor is None:
            return done.latents
        if self.first_low is None:
            self.first_low = anchor.low(done.latents)
            return done.latents
        return done.holding(anchor.apply(done.latents, self.first_low))

    def release(self) -> None:
        """Drop every tensor of the run."""
        self.active.clear()
        if self.sparse is not None:
            self.sparse.release()
        if self.passes.cache is not None:
            self.passes.cache.release()


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
    following: Callable[[PolicyState], PolicyState] = lambda state: state,
) -> Tensor:
    """Denoise one window of a video.

    noise: standard normal ``[B, C, F, H, W]``, F = the plan's latent frames. prefix: clean latents of the plan's prefix
    frames. noise_source: for solvers that re-noise and for ``prefix_noise`` (default: seeded with 0). cache: only to
    bring one's own (a counting one, say). following: whose decisions the run follows, given its policy's own state
    (those of another rank, say). Returns clean latents ``[B, C, F, H, W]``. Raises SettingError when shapes do
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
    run = Run.begin(denoiser, settings, latents, noise_source or seeded_noise(0), observe, cache, following)
    try:
        return run.execute()
    finally:
        run.release()
