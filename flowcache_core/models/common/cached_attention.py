"""Self-attention of one forward, the seam between the transformers and what they remember.

A transformer hands every layer's own q, k and v to a :data:`LayerAttention` and gets the attention's output. What lies
behind it (where K/V is kept, which of it is read and how, on which rank) the transformer never knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kv.cache import KVCache
from ...kv.layout import largest_chunk_frames
from ...kv.reposition import reposition_of
from ...kv.sink_window import SinkWindow
from ...plan.base import Chunk
from ...rows import Rows
from ...sparse.forward import SparseAttention

Attend = Callable[..., Tensor]
"""Attention without a mask: q ``[B, heads, tokens, head_dim]``, k and v with fewer tokens, heads or batch where they
serve several of q's; returns q's shape. A fourth tensor, where there is one, is added to the logits of the keys
``[B, heads of k, tokens of k]``."""

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


@dataclass(frozen=True)
class JointAttention:
    """Chunks side by side in one forward: writes the K/V of each, and all attend to all of them and to what is kept.

    chunks: neighbours, the newest active one last. branches: as in :class:`CachedAttention`. frames: latent frames that
    are seen in all: the sink, these chunks, and between them the newest that are kept; 0 for all that is kept.
    """

    cache: KVCache
    chunks: Sequence[Chunk]
    branches: range
    attend: Attend
    frames: int = 0

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        lengths = [chunk.frames * self.cache.spec.tokens_per_frame for chunk in self.chunks]
        for chunk, *own in zip(self.chunks, *(one.split(lengths, 2) for one in (q, k, v)), strict=True):
            self.cache.write(layer, self.branches, chunk, own[1], own[2])
            self.cache.observe(layer, self.branches, chunk, own[0])
        return joint_attend(self.cache, layer, self.branches, self.chunks[-1], q, self.attend, self.frames)


def joint_attend(
    cache: KVCache, layer: int, branches: range, newest: Chunk, q: Tensor, attend: Attend, frames: int
) -> Tensor:
    """``attend`` to the K/V that chunks up to ``newest`` see together; ``frames`` as in :class:`JointAttention`."""
    if not frames or cache.layouts[layer].context_end(newest.index) <= frames * cache.spec.tokens_per_frame:
        return cache.attend(layer, branches, newest, q, attend)
    return attend(q, *joint_context(cache, layer, branches, newest, frames))


def joint_context(cache: KVCache, layer: int, branches: range, newest: Chunk, frames: int) -> tuple[Tensor, Tensor]:
    """Keys and values of the sink and the newest others, ``frames`` latent frames in all. A sink that stands next to
    what is kept moves on, next to what is seen.
    """
    keys, values = cache.context(layer, branches, newest)
    spec, compressor = cache.spec, cache.settings.compressor
    passed = keys.shape[-2] - frames * spec.tokens_per_frame
    if not frames or passed <= 0:
        return keys, values
    unit = largest_chunk_frames(cache.plan) * spec.tokens_per_frame
    sink = compressor.sink_tokens(unit) if isinstance(compressor, SinkWindow) else 0
    start = keys[..., :sink, :]
    if reposition_of(cache.settings, spec) is not None and spec.move is not None:
        start = spec.move(start, passed // spec.tokens_per_frame)
    rest = slice(sink + passed, None)
    return torch.cat((start, keys[..., rest, :]), -2), torch.cat((values[..., :sink, :], values[..., rest, :]), -2)
