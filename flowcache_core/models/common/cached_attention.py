"""Self-attention of one forward, the seam between the transformers and what they remember.

A transformer hands every layer's own q, k and v to a :data:`LayerAttention` and gets the attention's output. What lies
behind it (where K/V is kept, which of it is read and how, on which rank) the transformer never knows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ...kv.cache import KVCache
from ...plan.base import Chunk
from ...rows import Rows
from ...sparse.forward import SparseAttention

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention without a mask: q ``[B, heads, tokens, head_dim]``, k and v with fewer tokens, heads or batch where they
serve several of q's; returns q's shape."""

LayerAttention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""``(layer, q, k, v) -> output``, called once a layer in ascending order: the forward's own ``[B, heads, tokens,
head_dim]`` (fewer heads for k and v), q and k normalised and rotated, and output of q's shape."""

Memory = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(layer, q, k, v) -> keys and values to attend to``: earlier chunks', then the forward's own."""


def attending(memory: Memory, attend: Attend) -> LayerAttention:
    """Attention to what ``memory`` returns."""
    return lambda layer, q, k, v: attend(q, *memory(layer, q, k, v))


def attending_alone(attend: Attend) -> LayerAttention:
    """A forward that sees only itself and leaves nothing behind."""
    return lambda layer, q, k, v: attend(q, k, v)


@dataclass(frozen=True)
class CachedAttention:
    """Writes a chunk's K/V into the cache and attends to what the chunk may see of it.

    branches: the guidance branches in the forward's batch, branch-major; the K/V of all is written. newest: how many of
    the newest tokens are seen, the chunk's own included; 0 for all. observe: whether the compressor samples these
    queries. copies: branches that store the same K/V beside (one forward that writes for several). rows: the chunk's
    tokens that are in this forward, None for all; the others are seen as they were computed last, and the compressor
    keeps the queries of the last whole forward. sparse: what the attention goes through, None where nothing is left out
    of it; a forward of some rows is dense.
    """

    cache: KVCache
    chunk: Chunk
    branches: range
    attend: Attend
    newest: int = 0
    observe: bool = True
    copies: range = range(0)
    rows: Rows | None = None
    sparse: SparseAttention | None = None

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.sparse is None:
            self.write(layer, q, k, v)
            return self.cache.attend(layer, self.branches, self.chunk, q, self.attend, self.newest)
        keys, values = self.context(layer, q, k, v)
        return self.sparse.attend(layer, self.branches, q, keys, values, self.attend)

    def context(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes as well; the keys and values that the queries see."""
        self.write(layer, q, k, v)
        return self.cache.context(layer, self.branches, self.chunk, self.newest)

    def write(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        for branches in (*(range(branch, branch + 1) for branch in self.copies), self.branches):
            self.cache.write(layer, branches, self.chunk, k, v, self.rows)
            if self.observe and self.rows is None:
                self.cache.observe(layer, branches, self.chunk, q)
