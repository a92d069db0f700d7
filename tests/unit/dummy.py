"""A denoiser whose velocity is known by arithmetic, for tests of the engine and the policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flowcache_core.denoiser import ChunkInput, ChunkOutput
from flowcache_core.kv.cache import KVCache
from flowcache_core.kv.spec import KVSpec


@dataclass
class DummyDenoiser:
    """Velocity ``rule(item)``; K/V of a chunk hold ``1000 * chunk + step`` so that a test can see what was written."""

    rule: Callable[[ChunkInput], Tensor] = lambda item: torch.ones_like(item.latents)
    branches: int = 1
    calls: list[tuple[int, int]] = field(default_factory=list)
    contexts: list[list[float]] = field(default_factory=list)
    fail_at: tuple[int, int] | None = None

    def kv_spec(self, latents: Tensor) -> KVSpec:
        return KVSpec(
            layers=2, kv_heads=2, head_dim=4, tokens_per_frame=2, branches=self.branches, batch=latents.shape[0]
        )

    def compute(self, item: ChunkInput, cache: KVCache, *, keep_residual: bool = False) -> ChunkOutput:
        if self.fail_at == (item.chunk.index, item.step):
            raise InterruptedError("stopped by the user")
        self.calls.append((item.chunk.index, item.step))
        branches = range(self.branches)
        n = len(branches) * item.latents.shape[0]
        tokens = item.chunk.frames * 2
        value = torch.full((n, 2, tokens, 4), float(1000 * item.chunk.index + item.step))
        for layer in range(2):
            cache.write(layer, branches, item.chunk, value, value)
            cache.observe(layer, branches, item.chunk, torch.ones(n, 2, tokens, 4))
            keys, _ = cache.context(layer, branches, item.chunk)
        self.contexts.append(keys[0, 0, ::2, 0].tolist())
        velocity = self.rule(item).expand(len(branches), *item.latents.shape).clone()
        return ChunkOutput(velocity, velocity * 2 if keep_residual else None)

    def joint(self, items: Sequence[ChunkInput], cache: KVCache) -> Sequence[ChunkOutput]:
        return [self.compute(item, cache) for item in items]

    def encode(self, item: ChunkInput, cache: KVCache) -> None:
        self.compute(item, cache)

    def from_residual(self, item: ChunkInput, residual: Tensor) -> Tensor:
        return residual / 2

    def window(self, latents: Tensor, timesteps: Sequence[float], items: Sequence[ChunkInput]) -> Tensor:
        times = torch.tensor(timesteps).view(1, 1, -1, 1, 1).expand_as(latents)
        return times.expand(self.branches, *latents.shape).clone()

    def guide(self, velocity: Tensor, item: ChunkInput) -> Tensor:
        return velocity.mean(0)

    def patch_embedding(self, item: ChunkInput) -> Tensor:
        return item.latents * 3

    def time_modulation(self, timestep: float) -> Tensor:
        return torch.tensor([timestep, timestep])
