"""Which head bears how much sparsity, measured at one step of a dense run: the same forward again, one head at one p.

The first half of HASTE's error-guided calibration, for whoever runs the model: :mod:`.heads` for a command, a sampler
for a graph. History and latents are the dense run's throughout, so the order of samples is of no account and what
is known can be kept after each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..denoiser import ChunkInput, ChunkOutput, Denoiser
from ..errors import require
from ..kv.cache import KVCache
from ..kv.spec import KVSpec
from ..rows import Rows
from ..sparse.attend import choose_engine
from ..sparse.engines import Call
from ..sparse.forward import Dense
from ..sparse.head_errors import HeadErrors, Sample
from ..sparse.mask import SparseMask
from ..sparse.method import SparseMethod
from ..sparse.xattention import XAttention

Place = tuple[int, int]
"""Chunk and own step of a sample."""
SAVED_EVERY = 20.0  # seconds


@dataclass
class OneHead:
    """A forward in which one head of one layer attends sparsely (``ChunkInput.sparse``). density: what it computed."""

    method: SparseMethod
    layer: int
    head: int
    densities: list[Tensor] = field(default_factory=list)

    def attend(
        self,
        layer: int,
        branches: range,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dense: Dense,
        *,
        sage: bool = False,
        again: bool = False,
    ) -> Tensor:
        out = dense(q, k, v)
        if layer != self.layer:
            return out
        head = slice(self.head, self.head + 1)
        kv_head = self.head // (q.shape[1] // k.shape[1])
        keys, values = (x[:, kv_head : kv_head + 1] for x in (k, v))
        mask = SparseMask(self.method.mask(q, k, layer, [self.head]).kept, self.method.block, q.shape[2], k.shape[2])
        choice = choose_engine("auto", Call.of(q[:, head], keys, self.method.block), sage=sage)
        require(choice.engine is not None, "calibration", choice.note, "a device where sparse attention is computed")
        assert choice.engine is not None
        self.densities.append(mask.density().mean())
        out = out.clone()
        out[:, head] = choice.engine.attend(q[:, head], keys, values, mask)
        return out

    @property
    def density(self) -> float:
        return float(torch.stack(self.densities).mean())


class Measuring:
    """A denoiser that measures at ``places``, or where a chunk is computed next after one, and answers as the one it
    wraps.

    measure: called with (dense output, item, forward, tokens of the context), where ``forward(sparse)`` is the item's
    guided velocity with its self-attention through ``sparse``; K/V is the dense run's again afterwards. rewind: called
    before such a step; what it returns puts back what a forward of it remembers beside K/V.
    """

    def __init__(
        self,
        inner: Denoiser,
        places: Collection[Place],
        measure: Callable[[Tensor, ChunkInput, Callable[[object], Tensor], int], None],
        rewind: Callable[[], Callable[[], None]] = lambda: lambda: None,
    ) -> None:
        self.inner, self.waiting, self.measure, self.rewind = inner, set(places), measure, rewind

    @property
    def branches(self) -> int:
        return self.inner.branches

    def kv_spec(self, latents: Tensor) -> KVSpec:
        return self.inner.kv_spec(latents)

    def compute(
        self, item: ChunkInput, cache: KVCache, *, keep_residual: bool = False, rows: Rows | None = None
    ) -> ChunkOutput:
        due = {place for place in self.waiting if place[0] == item.chunk.index and place[1] <= item.step}
        if not due or rows is not None:
            return self.inner.compute(item, cache, keep_residual=keep_residual, rows=rows)
        self.waiting -= due
        again = self.rewind()
        output = self.inner.compute(item, cache, keep_residual=keep_residual)

        def forward(sparse: object) -> Tensor:
            again()
            found = self.inner.compute(replace(item, sparse=sparse), cache)  # type: ignore[arg-type]
            return self.inner.guide(found.velocity, item)

        try:
            self.measure(self.inner.guide(output.velocity, item), item, forward, cache.context_tokens(item.chunk))
        finally:
            again()
            self.inner.compute(item, cache)
        return output

    def joint(self, items: Sequence[ChunkInput], cache: KVCache) -> Sequence[ChunkOutput]:
        return self.inner.joint(items, cache)

    def encode(self, item: ChunkInput, cache: KVCache) -> None:
        self.inner.encode(item, cache)

    def from_residual(self, item: ChunkInput, residual: Tensor) -> Tensor:
        return self.inner.from_residual(item, residual)

    def window(self, latents: Tensor, timesteps: Sequence[float], items: Sequence[ChunkInput]) -> Tensor:
        return self.inner.window(latents, timesteps, items)

    def guide(self, velocity: Tensor, item: ChunkInput) -> Tensor:
        return self.inner.guide(velocity, item)

    def patch_embedding(self, item: ChunkInput) -> Tensor:
        return self.inner.patch_embedding(item)

    def time_modulation(self, timestep: float) -> Tensor:
        return self.inner.time_modulation(timestep)


def samples_of(sparse: Mapping[int, Sequence[int]], count: int, video: int, videos: int) -> tuple[Place, ...]:
    """``count`` places of the ``video``-th of ``videos``: the first, middle and last of the chunks in turns, steps
    spread over the run and other ones in every video. sparse: chunk -> its steps that may be taken, ascending.
    """
    chunks = sorted(sparse)
    picked = [chunks[round(i * (len(chunks) - 1) / max(1, min(3, count) - 1))] for i in range(min(3, count))]
    first = (video + 0.5) / videos
    found = []
    for i in range(count):
        steps = sparse[chunk := picked[(i + video) % len(picked)]]
        found.append((chunk, steps[int((i + first) * len(steps) / count)]))
    return tuple(found)


def relative_error(velocity: Tensor, dense: Tensor) -> float:
    """|v - v_dense|^2 / |v_dense|^2 of guided velocities ``[B, ...]``, mean over videos."""
    off, whole = (x.float().square().flatten(1).sum(1) for x in (velocity - dense, dense))
    return float((off / whole).mean())


def measure_sample(
    errors: HeadErrors,
    sample: Sample,
    dense: Tensor,
    forward: Callable[[object], Tensor],
    path: Path | None = None,
    each: Callable[[], None] = lambda: None,
) -> None:
    """What ``errors`` lacks of ``sample``; see :class:`Measuring`. Kept in ``path`` as it comes, also when ``each``,
    which is called behind every measurement, ends it.
    """
    subject, saved = errors.subject, time.monotonic()
    try:
        for cell in list(errors.missing(sample)):
            p = subject.candidates[cell.candidate]
            sparse = OneHead(XAttention(subject.block, p, subject.stride), cell.layer, cell.head)
            error = relative_error(forward(sparse), dense)
            errors.record(sample, cell, error, sparse.density)
            if path is not None and time.monotonic() - saved > SAVED_EVERY:
                errors.save(path)
                saved = time.monotonic()
            each()
    finally:
        if path is not None:
            errors.save(path)
