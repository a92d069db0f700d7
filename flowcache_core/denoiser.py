"""What the engine asks of a model: the velocity of one chunk at one noise level, per branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from .kv.cache import KVCache
from .kv.spec import KVSpec as KVSpec
from .plan.base import Chunk
from .rows import Rows
from .sparse.forward import SparseAttention


@dataclass(frozen=True)
class ChunkInput:
    """One chunk as the model sees it: latents ``[B, C, f, H, W]`` at ``sigma`` (model time ``timestep``).

    before: the last latent frame of the chunk before ``[B, C, H, W]``, as it stands now (in work, finished or given);
    None where there is none, and in what is kept of a step.
    kind: "step" is one of the chunk's own; the others are passes that only leave K/V (:meth:`Denoiser.encode`), whose
    step and sigma are those behind the last one: of a "prefix" chunk that is given, of a finished one once more
    ("clean"), of history under a new prompt ("recache"). prompt_from: the chunk whose prompt holds, None for its own
    (only when history is computed again). sparse: what the forward's self-attention goes through, None where nothing is
    left out of it. seen_frames: the newest latent frames that are seen, those of the forward included (in a joint one
    the sink counts and stays); 0 for all that is kept.
    """

    chunk: Chunk
    step: int
    sigma: float
    timestep: float
    latents: Tensor
    prompt_from: int | None = None
    kind: Literal["step", "prefix", "clean", "recache"] = "step"
    before: Tensor | None = None
    sparse: SparseAttention | None = None
    seen_frames: int = 0

    @property
    def prompt_chunk(self) -> int:
        return self.chunk.index if self.prompt_from is None else self.prompt_from


@dataclass(frozen=True)
class ChunkOutput:
    """Velocities ``[branches, B, C, f, H, W]`` (noise minus clean) and, when asked, the block-stack residual.

    rows: the tokens at which they hold, None for all: a model may compute all where it was asked for some. repeated:
    branches that were not run, whose last velocity serves again. branches: how many were run, None for all (the
    velocity of the others was known otherwise).
    """

    velocity: Tensor
    residual: Tensor | None = None
    rows: Rows | None = None
    repeated: frozenset[int] = frozenset()
    branches: int | None = None


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

    def compute(
        self, item: ChunkInput, cache: KVCache, *, keep_residual: bool = False, rows: Rows | None = None
    ) -> ChunkOutput:
        """Run the model on one chunk; writes its K/V into ``cache`` and attends to the chunks before it.

        rows: run these tokens only, over the K/V that the chunk's others left when they were computed last. The output
        says at which tokens it holds (:attr:`ChunkOutput.rows`); elsewhere it is whatever is finite. Asked for only
        where a policy takes part of a chunk (:attr:`..reuse.base.ReusePolicy.parts`), and never before the chunk has
        been computed whole.
        """
        ...

    def joint(self, items: Sequence[ChunkInput], cache: KVCache) -> Sequence[ChunkOutput]:
        """Neighbouring chunks in one forward, each at its own noise level: all see all of them and the K/V of finished
        ones. Writes the K/V of each. ``items``: in ascending order, the newest active chunk last.
        """
        ...

    def encode(self, item: ChunkInput, cache: KVCache) -> None:
        """Only (re)write the K/V of ``item.chunk`` from latents that are no step's: ``item.kind`` says why.

        The chunk's slot in ``cache`` has been begun and is not yet committed. Steps are never asked for here, nor such
        items by :meth:`compute`.
        """
        ...

    def from_residual(self, item: ChunkInput, residual: Tensor) -> Tensor:
        """Velocities as if the block stack had added ``residual`` again: embedding and head only."""
        ...

    def window(self, latents: Tensor, timesteps: Sequence[float], items: Sequence[ChunkInput]) -> Tensor:
        """Bidirectional pass over a whole window ``[B, C, F, H, W]`` with one timestep per frame, no cache. Only frames
        of ``items``, the chunks that take a step now, are read of the result.
        """
        ...
