"""What the engine asks of a model: the velocity of one chunk at one noise level, per branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .kv.cache import KVCache
from .kv.spec import KVSpec as KVSpec
from .plan.base import Chunk


@dataclass(frozen=True)
class ChunkInput:
    """One chunk as the model sees it: latents ``[B, C, f, H, W]`` at ``sigma`` (model time ``timestep``).

    prompt_from: the chunk whose prompt holds, None for its own (only when history is computed again under a new one).
    """

    chunk: Chunk
    step: int
    sigma: float
    timestep: float
    latents: Tensor
    prompt_from: int | None = None

    @property
    def prompt_chunk(self) -> int:
        return self.chunk.index if self.prompt_from is None else self.prompt_from


@dataclass(frozen=True)
class ChunkOutput:
    """Velocities ``[branches, B, C, f, H, W]`` (noise minus clean) and, when asked, the block-stack residual."""

    velocity: Tensor
    residual: Tensor | None = None


class ModelView(Protocol):
    """What policies and distances ask of a model; each may be called at any time and changes nothing."""

    def guide(self, velocity: Tensor, item: ChunkInput) -> Tensor:
        """Combine branch velocities ``[branches, B, ...]`` into one ``[B, ...]``."""
        ...

    def patch_embedding(self, item: ChunkInput) -> Tensor:
        """Tokens after the patch embedding, before any block (the MAGI-1 reuse distance)."""
        ...

    def time_modulation(self, timestep: float) -> Tensor:
        """The time projection that modulates the blocks (the TeaCache distance); independent of content."""
        ...


class Denoiser(ModelView, Protocol):
    """Adapter of one model. Keeps no state between calls that a run could leave behind."""

    @property
    def branches(self) -> int:
        """Guidance branches: 1, 2 for cond and uncond, 3 for MAGI-1's; the cache may hold fewer (:meth:`kv_spec`)."""
        ...

    def kv_spec(self, latents: Tensor) -> KVSpec:
        """K/V shape for latents ``[B, C, F, H, W]``."""
        ...

    def compute(self, item: ChunkInput, branches: range, cache: KVCache, *, keep_residual: bool = False) -> ChunkOutput:
        """Run the model on one chunk; writes its K/V into ``cache`` and attends to the chunks before it."""
        ...

    def from_residual(self, item: ChunkInput, branches: range, residual: Tensor) -> Tensor:
        """Velocities as if the block stack had added ``residual`` again: embedding and head only."""
        ...

    def window(
        self, latents: Tensor, timesteps: Sequence[float], items: Sequence[ChunkInput], branches: range
    ) -> Tensor:
        """Bidirectional pass over a whole window ``[B, C, F, H, W]`` with one timestep per frame, no cache. Only frames
        of ``items``, the chunks that take a step now, are read of the result.
        """
        ...
