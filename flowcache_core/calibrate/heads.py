"""Which head bears how much sparsity: measured inside one dense run of a model (HASTE's error-guided calibration).

At chosen steps of the run the same forward is done again, one head at one candidate p at a time, and its velocity is
compared with the dense one. History and latents are the dense run's throughout, so the order of samples is of no
account and what is known can be kept after each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..denoiser import ChunkInput, ChunkOutput, Denoiser
from ..engine import EngineSettings
from ..errors import require
from ..kv.cache import KVCache
from ..kv.spec import KVSpec
from ..presets.sparse import UNREAD
from ..rows import Rows
from ..sparse.attend import choose_engine
from ..sparse.engines import Call
from ..sparse.forward import Dense
from ..sparse.head_errors import HeadErrors, Sample, Subject
from ..sparse.mask import SparseMask
from ..sparse.method import SparseMethod
from ..sparse.xattention import XAttention
from .runs import Pair, Setup, Specimen, generated

Place = tuple[int, int]
"""Chunk and own step of a sample."""


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
    """A denoiser that measures at ``places`` and answers as the one it wraps.

    measure: called with (dense output, item, forward), where ``forward(sparse)`` is the item's guided velocity with its
    self-attention through ``sparse``; K/V is the dense run's again afterwards.
    """

    def __init__(
        self,
        inner: Denoiser,
        places: Collection[Place],
        measure: Callable[[Tensor, ChunkInput, Callable[[object], Tensor], int], None],
    ) -> None:
        self.inner, self.places, self.measure = inner, places, measure

    @property
    def branches(self) -> int:
        return self.inner.branches

    def kv_spec(self, latents: Tensor) -> KVSpec:
        return self.inner.kv_spec(latents)

    def compute(
        self, item: ChunkInput, cache: KVCache, *, keep_residual: bool = False, rows: Rows | None = None
    ) -> ChunkOutput:
        output = self.inner.compute(item, cache, keep_residual=keep_residual, rows=rows)
        if (item.chunk.index, item.step) in self.places:

            def forward(sparse: object) -> Tensor:
                again = self.inner.compute(replace(item, sparse=sparse), cache)  # type: ignore[arg-type]
                return self.inner.guide(again.velocity, item)

            try:
                self.measure(self.inner.guide(output.velocity, item), item, forward, cache.context_tokens(item.chunk))
            finally:
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


def relative_error(velocity: Tensor, dense: Tensor) -> float:
    """|v - v_dense|^2 / |v_dense|^2 of guided velocities ``[B, ...]``, mean over videos."""
    off, whole = (x.float().square().flatten(1).sum(1) for x in (velocity - dense, dense))
    return float((off / whole).mean())


@dataclass
class HeadCalibration:
    """Measures what ``errors`` lacks. places: samples of each video, from the first again when there are more. path:
    where measurements are kept as they come.

    told: called with (measured, all) cells.
    """

    specimen: Specimen
    setup: Setup
    errors: HeadErrors
    places: Sequence[Sequence[Place]]
    path: Path | None = None
    told: Callable[[int, int], None] = lambda done, of: None
    done: int = 0

    @property
    def subject(self) -> Subject:
        return self.errors.subject

    @property
    def cells(self) -> int:
        """Measurements of one sample."""
        candidates = sum(p < 1 for p in self.subject.candidates)
        return self.subject.layers * self.subject.heads * candidates

    def total(self, videos: int) -> int:
        return self.cells * sum(len(self.places[i % len(self.places)]) for i in range(videos))

    def run(self, pairs: Sequence[Pair]) -> None:
        """One dense run per pair, all samples in it; a pair whose samples are complete is not run again."""
        total = self.total(len(pairs))
        for number, (prompt, seed) in enumerate(pairs):
            places = self.places[number % len(self.places)]
            known = [sample for sample in self.errors.error if sample.seed == seed]
            whole = {(one.chunk, one.step) for one in known if not list(self.errors.missing(one))}
            left = [place for place in places if place not in whole]
            self.done += self.cells * (len(places) - len(left))
            if not left:
                continue

            def measure(
                dense: Tensor, item: ChunkInput, forward: Callable[[object], Tensor], context: int, seed: int = seed
            ) -> None:
                self.sample(Sample(seed, item.chunk.index, item.step, context), dense, forward, total)

            denoiser = Measuring(self.specimen.denoiser([prompt], self.setup), left, measure)
            last = max(chunk for chunk, _ in left) + 1
            # A video's later chunks are of no use to its earlier ones.
            generated(self.specimen, replace(self.setup, chunks=last), [(prompt, seed)], denoiser=denoiser)

    def sample(self, sample: Sample, dense: Tensor, forward: Callable[[object], Tensor], total: int) -> None:
        begun = time.monotonic()
        for cell in list(self.errors.missing(sample)):
            p = self.subject.candidates[cell.candidate]
            sparse = OneHead(XAttention(self.subject.block, p, self.subject.stride), cell.layer, cell.head)
            error = relative_error(forward(sparse), dense)
            self.errors.record(sample, cell, error, sparse.density)
            self.done += 1
            if self.path is not None and time.monotonic() - begun > 20:
                self.errors.save(self.path)
                begun = time.monotonic()
        if self.path is not None:
            self.errors.save(self.path)
        self.told(self.done, total)


def spread_places(
    chunks: int, steps: int, dense_chunks: int, count: int, video: int = 0, videos: int = 1
) -> tuple[Place, ...]:
    """``count`` samples of one video: chunks from the first sparse one to the last, steps spread over the run.

    Every sample has its own step, in each of ``videos`` others; contexts short and long take turns. SettingError (field
    "chunks") when none is sparse.
    """
    sparse = range(dense_chunks, chunks)
    accepted = f"more than the {dense_chunks} whose contexts stay dense"
    require(len(sparse) > 0, "chunks", chunks, accepted)
    picked = [sparse[round(i * (len(sparse) - 1) / max(1, min(3, count) - 1))] for i in range(min(3, count))]
    first = (video + 0.5) / videos
    return tuple((picked[(i + video) % len(picked)], int((i + first) * steps / count)) for i in range(count))


def subject_of(
    specimen: Specimen, setup: Setup, block: int, stride: int, candidates: Sequence[float]
) -> tuple[Subject, EngineSettings]:
    """What is calibrated; SettingError when the blocks do not fit its chunks."""
    settings = specimen.settings(setup)
    spec = specimen.denoiser([specimen.prompts[0]], setup).kv_spec(specimen.noise(setup.chunks, 0))
    subject = Subject(specimen.sha256 or UNREAD, spec.layers, spec.heads, block, stride, tuple(candidates))
    tokens = max(chunk.frames for chunk in settings.plan.chunks) * spec.tokens_per_frame
    require(block <= tokens, "block", block, f"at most the {tokens} tokens of a chunk")
    return subject, settings
