"""Forwards of a run beside its steps: those that only leave K/V, and the bidirectional one over a whole window."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..denoiser import ChunkInput, ChunkOutput, Denoiser
from ..kv.cache import KVCache
from ..kv.contexts import kept_again
from ..kv.layout import CompressionResult
from ..noise import NoiseSource
from ..plan.base import Chunk, Tick
from ..plan.staggered import timestep_rows
from ..report.events import CacheCompressed, CacheKind, CachePass, Event, WindowPass
from ..sparse.run import SparseRun
from .settings import EngineSettings


@dataclass
class Passes:
    """What a run asks of the model and its cache outside the steps.

    latents: the window ``[B, C, F, H, W]``, the run's own; finished and given chunks stand in it. cache: None with
    bidirectional attention. sparse: None where all attention is dense. seconds: spent in the denoiser so far.
    """

    denoiser: Denoiser
    settings: EngineSettings
    latents: Tensor
    noise: NoiseSource
    observe: Callable[[Event], None]
    cache: KVCache | None
    tokens_per_frame: int
    sparse: SparseRun | None = None
    rows: tuple[tuple[float, ...], ...] = field(init=False)
    seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        whole = settings.attention == "bidirectional"
        self.rows = timestep_rows(settings.plan, settings.schedule.timesteps) if whole else ()

    def frames(self, chunk: Chunk) -> Tensor:
        """The chunk's part of the window, a view."""
        return self.latents[:, :, chunk.first_frame : chunk.end_frame]

    def begin_chunk(self, chunk: Chunk, tick: int) -> None:
        """Reserve the chunk's K/V slot, compressing the clean region when there is no room for it."""
        if self.cache is None:
            return
        if chunk.index in self.settings.recache:
            self.recache(chunk, tick)
        self.told(self.cache.begin, chunk, tick)

    def told(self, act: Callable[[Chunk], CompressionResult | None], chunk: Chunk, tick: int) -> None:
        """Begin or commit a chunk and say so where that compressed the history."""
        begun = time.perf_counter()
        done = act(chunk)
        if done is not None:
            seconds = time.perf_counter() - begun
            self.observe(CacheCompressed(tick, chunk.index, done.tokens_before, done.tokens_after, seconds))

    def recache(self, chunk: Chunk, tick: int) -> None:
        """Compute what fits of the history again, under the prompt of ``chunk``: sink and newest chunks (LongLive)."""
        assert self.cache is not None
        room = min(layout.capacity for layout in self.cache.layouts) // self.tokens_per_frame
        plan = self.settings.plan
        self.cache.forget()
        for kept in kept_again(plan, chunk, room, self.cache.settings.sink_frames(plan)):
            self.cache.begin(kept)
            latents, time = self.frames(kept), self.settings.clean_timestep
            self.encode("recache", kept, latents, time, prompt_from=chunk.index, tick=tick)
            self.told(self.cache.commit, kept, tick)

    def encode(
        self,
        kind: CacheKind,
        chunk: Chunk,
        latents: Tensor,
        timestep: float,
        prompt_from: int | None = None,
        *,
        tick: int = 0,
    ) -> None:
        """A forward that only (re)writes the chunk's K/V."""
        assert self.cache is not None
        begun = time.perf_counter()
        steps = self.settings.plan.steps
        sparse = None if self.sparse is None else self.sparse.forward(chunk, steps, lasting=True)
        thin = sparse if sparse is not None and sparse.leaves_out(self.seen_tokens(chunk)) else None
        frames = self.settings.joint_frames
        item = ChunkInput(chunk, steps, 0.0, timestep, latents, prompt_from, kind, sparse=thin, seen_frames=frames)
        self.denoiser.encode(item, self.cache)
        seconds = time.perf_counter() - begun
        self.seconds += seconds
        tokens = chunk.frames * self.tokens_per_frame
        context = self.seen_tokens(chunk)
        self.observe(CachePass(kind, chunk.index, self.denoiser.branches, tokens, context, seconds))
        if self.sparse is not None and sparse is not None:
            self.sparse.leave(sparse, tick, context)

    def prefix(self) -> None:
        """Write the K/V of the chunks that are given clean."""
        if self.cache is None:
            return
        plan, level = self.settings.plan, self.settings.prefix_noise
        for chunk in plan.chunks[: plan.prefix_chunks]:
            self.begin_chunk(chunk, 0)
            timestep = self.settings.schedule.time(level) if level else self.settings.clean_timestep
            self.encode("prefix", chunk, self.noisy_prefix(chunk, 0), timestep)
            self.told(self.cache.commit, chunk, 0)

    def noisy_prefix(self, chunk: Chunk, tick: int) -> Tensor:
        """A prefix chunk as the model sees it."""
        clean, level = self.frames(chunk), self.settings.prefix_noise
        return torch.lerp(clean, self.noise(chunk.index, tick, clean), level) if level else clean

    def finished(self, chunk: Chunk, latents: Tensor, tick: int) -> None:
        """Leave a finished chunk's lasting K/V behind: of its clean latents where that is asked for and read."""
        if self.cache is None:
            return
        if self.settings.clean_pass and chunk.index != self.settings.plan.chunks[-1].index:
            self.encode("clean", chunk, latents, self.settings.clean_timestep, tick=tick)
        self.told(self.cache.commit, chunk, tick)

    def seen_tokens(self, chunk: Chunk) -> int:
        """K/V tokens that a forward attends to whose newest chunk is this one."""
        assert self.cache is not None
        kept, frames = self.cache.context_tokens(chunk), self.settings.joint_frames
        return min(kept, frames * self.tokens_per_frame) if frames else kept

    def joint(self, items: Sequence[ChunkInput]) -> dict[int, ChunkOutput]:
        """One forward over the chunks of a tick, by chunk."""
        assert self.cache is not None
        begun = time.perf_counter()
        frames = self.settings.joint_frames
        outputs = self.denoiser.joint([replace(item, seen_frames=frames) for item in items], self.cache)
        self.seconds += time.perf_counter() - begun
        return {item.chunk.index: output for item, output in zip(items, outputs, strict=True)}

    def window(self, tick: Tick, items: Sequence[ChunkInput]) -> Tensor:
        """One bidirectional forward; idle chunks stand where :func:`timestep_rows` puts them."""
        plan, level = self.settings.plan, self.settings.prefix_noise
        latents, times = self.latents, list(self.rows[tick.index])
        if level and plan.prefix_chunks:
            latents = latents.clone()
            for chunk in plan.chunks[: plan.prefix_chunks]:
                latents[:, :, chunk.first_frame : chunk.end_frame] = self.noisy_prefix(chunk, tick.index)
                times[chunk.index] = self.settings.schedule.time(level)
        timesteps = [t for chunk, t in zip(plan.chunks, times, strict=True) for _ in range(chunk.frames)]
        begun = time.perf_counter()
        velocity = self.denoiser.window(latents, timesteps, items)
        seconds = time.perf_counter() - begun
        self.seconds += seconds
        sizes = tuple(chunk.frames * self.tokens_per_frame for chunk in plan.chunks)
        self.observe(WindowPass(tick.index, self.denoiser.branches, sizes, seconds))
        return velocity
