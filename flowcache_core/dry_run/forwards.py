"""Forwards of a run under fake tensors: the first two of a kind are run, the others like them are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..denoiser import ChunkInput, ChunkOutput, Denoiser
from ..kv.cache import KVCache
from ..models.magi.denoiser import MagiDenoiser
from ..models.magi.guidance import is_nearly_clean, needs_alone
from ..models.wan.denoiser import WanDenoiser
from ..rows import Rows
from .memory import Ledger
from .traffic import Count, Traffic

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


@dataclass
class Measured:
    """What one forward asks for. rise: bytes by device above what was held when it began."""

    flops: int
    count: Count
    rise: Counter[str]


@dataclass
class Forwards:
    """The denoiser ``inner`` as the engine sees it. run, counted: how many forwards of either way."""

    inner: Denoiser
    ledger: Ledger
    traffic: Traffic
    flops: FlopCounterMode
    run: int = 0
    counted: int = 0
    more_flops: int = 0
    begun: set[Hashable] = field(default_factory=set)
    known: dict[Hashable, Measured] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def total_flops(self) -> int:
        return self.flops.get_total_flops() + self.more_flops

    def compute(
        self, item: ChunkInput, cache: KVCache, *, keep_residual: bool = False, rows: Rows | None = None
    ) -> ChunkOutput:
        count = None if rows is None else rows.count
        with self.like(("step", keep_residual, count, *variety(self.inner, item, cache))) as again:
            if not again:
                return self.inner.compute(item, cache, keep_residual=keep_residual, rows=rows)
        tokens = item.chunk.frames * cache.spec.tokens_per_frame
        with self.traffic.unheard():
            write_all(cache, item, tokens)
        residual = None
        if keep_residual:
            width = self.inner.transformer.config.dim  # type: ignore[attr-defined]
            shape = (self.inner.branches * item.latents.shape[0], tokens, width)
            residual = torch.empty(shape, dtype=cache.spec.dtype, device=item.latents.device)
        return ChunkOutput(self.velocities(item.latents), residual, rows)

    def joint(self, items: Sequence[ChunkInput], cache: KVCache) -> Sequence[ChunkOutput]:
        kinds = tuple((item.chunk.frames, *variety(self.inner, item, cache)) for item in items)
        with self.like(("joint", *kinds)) as again:
            if not again:
                return self.inner.joint(items, cache)
        with self.traffic.unheard():
            for item in items:
                write_all(cache, item, item.chunk.frames * cache.spec.tokens_per_frame)
        return [ChunkOutput(self.velocities(item.latents)) for item in items]

    def encode(self, item: ChunkInput, cache: KVCache) -> None:
        with self.like(("encode", *variety(self.inner, item, cache))) as again:
            if not again:
                self.inner.encode(item, cache)
                return
        with self.traffic.unheard():
            write_all(cache, item, item.chunk.frames * cache.spec.tokens_per_frame)

    def window(self, latents: Tensor, timesteps: Sequence[float], items: Sequence[ChunkInput]) -> Tensor:
        with self.like(("window", *latents.shape)) as again:
            if not again:
                return self.inner.window(latents, timesteps, items)
        return self.velocities(latents)

    def velocities(self, latents: Tensor) -> Tensor:
        return torch.empty((self.inner.branches, *latents.shape), dtype=torch.float32, device=latents.device)

    @contextmanager
    def like(self, kind: Hashable) -> Iterator[bool]:
        """Yields whether a forward of this kind has been measured, and is counted now; measures it otherwise."""
        found = self.known.get(kind)
        if found is not None:
            self.counted += 1
            self.more_flops += found.flops
            self.traffic.count += found.count
            self.ledger.suppose(found.rise)
            yield True
            return
        self.run += 1
        before, flops = self.traffic.count.mark(), self.flops.get_total_flops()
        with self.ledger.measured() as rise:
            yield False
        if kind in self.begun:  # the first of a kind may prepare texts and rotations for all others
            self.known[kind] = Measured(self.flops.get_total_flops() - flops, self.traffic.count.since(before), rise)
        self.begun.add(kind)


def variety(denoiser: Denoiser, item: ChunkInput, cache: KVCache) -> tuple[Hashable, ...]:
    """What else decides which operations a forward runs: the kind of step, not its values."""
    clean = item.kind != "step"
    context = tuple(layout.context_end(item.chunk.index) for layout in cache.layouts)
    if isinstance(denoiser, WanDenoiser):
        prompt = max(start for start in denoiser.prompts if start <= item.prompt_chunk)
        return item.chunk.frames, context, prompt
    assert isinstance(denoiser, MagiDenoiser)
    oldest = cache.layouts[0].active[0] == item.chunk.index
    alone = denoiser.guidance is not None and not clean and needs_alone(denoiser.guidance.at(item.timestep))
    nearly = oldest and not clean and denoiser.nearly_clean and is_nearly_clean(item.timestep)
    given = item.chunk.index < cache.plan.prefix_chunks
    twice = bool(nearly and denoiser.step_times)
    return (item.chunk.frames, context, clean, given, alone, twice, denoiser.visible_tokens(item, cache))


def write_all(cache: KVCache, item: ChunkInput, tokens: int) -> None:
    """Mark a chunk's K/V as written in every layer, as its forward would."""
    spec = cache.spec
    branches = range(spec.branches)
    shape = (spec.branches * spec.batch, spec.kv_heads, tokens, spec.head_dim)
    device = cache.settings.device or spec.device  # where it is kept: nothing is moved, since nobody listens
    own = torch.empty((), dtype=spec.dtype, device=device).expand(shape)
    for layer in range(spec.layers):
        cache.write(layer, branches, item.chunk, own, own)
