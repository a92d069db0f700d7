"""Measure what keeping less would have done: a cache that keeps all, and asks at some steps what else it could.

For every compressor, storage and budget the attention of some of the last chunk's queries is computed a second time,
over what would have been kept and as it would have been stored, and compared with that over everything. Compressed
is at once and not chunk by chunk, with the queries that a compression would have: those of the chunk before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..plan.base import Chunk, Plan
from .cache import KVCache
from .compressor import Compressor, Region
from .layout import largest_chunk_frames
from .profile import ErrorProfile, Sizes
from .settings import KVSettings
from .spec import KVSpec
from .storage.base import Packed, Storage
from .storage.codec import Codec
from .storage.groups import group_count

QUERIES = 64
"""Of a chunk, evenly spaced: what is measured is a mean over them."""
Key = tuple[str, str, float]


@dataclass(frozen=True)
class Candidates:
    """compressors and storages by name, and budgets in chunks; a budget below what a compressor needs is left out."""

    compressors: Sequence[Compressor]
    storages: Sequence[Storage]
    budgets: Sequence[float]


@dataclass
class Measured:
    """What runs of one length have found so far: squared errors by candidate, layer and K/V head, and of what a layer
    gives; history: finished chunks before the one that is measured."""

    spec: KVSpec
    history: float
    found: dict[Key, list[list[float]]] = field(default_factory=dict)
    whole: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.whole = self.whole or [0.0] * self.spec.layers

    def add(self, key: Key, layer: int, lost: Tensor) -> None:
        """lost: output of the layer's queries minus what it should be ``[B, heads, queries, d]``."""
        heads = self.spec.kv_heads
        rows = self.found.setdefault(key, [[0.0] * heads for _ in range(self.spec.layers)])
        sums = lost.square().sum((0, 2, 3)).unflatten(0, (heads, -1)).sum(1).tolist()
        rows[layer] = [before + one for before, one in zip(rows[layer], sums, strict=True)]

    def profile(self, model: str) -> ErrorProfile:
        """Relative errors; budgets as shares of the history."""
        budgets = sorted({budget for *_, budget in self.found if budget <= self.history})
        errors: dict[str, dict[str, tuple[tuple[float, ...], ...]]] = {}
        for compressor, storage in dict.fromkeys(key[:2] for key in self.found):
            rows = []
            for budget in budgets:
                if lost := self.found.get((compressor, storage, budget)):
                    row = (one / whole for heads, whole in zip(lost, self.whole, strict=True) for one in heads)
                    rows.append(tuple(float(f"{value:.4g}") for value in row))
            errors.setdefault(compressor, {})[storage] = tuple(rows)
        return ErrorProfile(model, Sizes.of(self.spec), tuple(budget / self.history for budget in budgets), errors)


class MeasuringCache(KVCache):
    """Of one run over chunks that come one after the other. ``steps``: at which of the last chunk's steps it measures,
    each branch by itself where they are forwards of their own."""

    def __init__(
        self, spec: KVSpec, plan: Plan, candidates: Candidates, steps: Sequence[int], measured: Measured
    ) -> None:
        super().__init__(spec, KVSettings(), plan)
        self.candidates, self.at, self.measured = candidates, frozenset(steps), measured
        self.last, self.tokens_of_chunk = plan.chunks[-1], largest_chunk_frames(plan) * spec.tokens_per_frame
        self._asked: Counter[tuple[int, int]] = Counter()
        self._queries: dict[tuple[int, int], Tensor] = {}

    def observe(self, layer: int, branches: range, chunk: Chunk, q: Tensor) -> None:
        if chunk.index == self.last.index - 1:
            for branch, queries in zip(branches, q.detach().unflatten(0, (len(branches), -1)), strict=True):
                self._queries[layer, branch] = queries.clone()

    def attend(
        self,
        layer: int,
        branches: range,
        chunk: Chunk,
        q: Tensor,
        attend: Callable[..., Tensor],
        newest: int = 0,
        fused: bool = True,
    ) -> Tensor:
        out = super().attend(layer, branches, chunk, q, attend, newest, fused)
        if chunk.index == self.last.index:
            if self._asked[layer, branches.start] in self.at:
                self._measure(layer, branches, q, attend, newest)
            self._asked[layer, branches.start] += 1
        return out

    def _measure(
        self,
        layer: int,
        branches: range,
        q: Tensor,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
        newest: int,
    ) -> None:
        """``newest``: of what is kept, however it was chosen, so many tokens are seen; 0 for all."""
        keys, values = self.context(layer, branches, self.last)
        own, _ = self.layouts[layer].span(self.last.index)
        rows = torch.arange(min(QUERIES, q.shape[2])) * q.shape[2] // min(QUERIES, q.shape[2])
        asking = q[:, :, rows.to(q.device)]
        whole = attend(asking, keys[:, :, -newest:], values[:, :, -newest:]).float()
        self.measured.whole[layer] += float(whole.square().sum())
        stored = {
            one.name: self._as_stored(one, keys[:, :, :own], values[:, :, :own]) for one in self.candidates.storages
        }
        region = self._region(layer, branches, keys[:, :, :own], values[:, :, :own])
        for compressor in self.candidates.compressors:
            for budget in self.candidates.budgets:
                count = min(own, round(budget * self.tokens_of_chunk))
                if budget < compressor.min_budget:
                    continue
                kept = compressor.keep(region, count) if count < own else None
                for name, (k, v) in stored.items():
                    if kept is not None:
                        index = kept.unsqueeze(-1).expand(*kept.shape, k.shape[-1])
                        k, v = k.gather(2, index), v.gather(2, index)
                    k, v = torch.cat((k, keys[:, :, own:]), 2), torch.cat((v, values[:, :, own:]), 2)
                    seen = attend(asking, k[:, :, -newest:], v[:, :, -newest:]).float()
                    self.measured.add((compressor.name, name, budget), layer, seen - whole)

    def _region(self, layer: int, branches: range, keys: Tensor, values: Tensor) -> Region:
        places = torch.arange(keys.shape[2], dtype=torch.int32, device=keys.device).expand(keys.shape[:3])
        starts, tokens = self._chunk_starts, self.spec.tokens_per_frame
        known = [self._queries[layer, branch] for branch in branches if (layer, branch) in self._queries]
        queries = torch.cat(known) if len(known) == len(branches) else None
        return Region(keys, values, queries, places, tokens, self.tokens_of_chunk, starts, layer, 0)

    def _as_stored(self, storage: Storage, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Finished chunks after packing and unpacking, chunk by chunk as they are committed."""
        if not isinstance(storage, Packed):
            return keys, values
        of_keys, of_values, most = storage.codecs(self.spec.head_dim, self.tokens_of_chunk)
        sizes = [chunk.frames * self.spec.tokens_per_frame for chunk in self.plan.chunks[: self.last.index]]
        return _packed(of_keys, keys, sizes, most), _packed(of_values, values, sizes, most)


def _packed(codec: Codec, tokens: Tensor, sizes: Sequence[int], most: int) -> Tensor:
    """``tokens [N, heads, L, d]``, in runs of ``sizes``, as what they are unpacked to."""
    parts = []
    for run in tokens.split(list(sizes), 2):
        length = run.shape[2]
        for part in run.split(-(-length // group_count(length, most)), 2):
            entry, out = codec.fit(part), torch.empty_like(part)
            table = {name: shared.unsqueeze(2) for name, shared in entry.items()}
            slot = torch.zeros(part.shape[:3], dtype=torch.int64, device=part.device)
            codec.decode(codec.encode(part, entry), table, slot, out)
            parts.append(out)
    return torch.cat(parts, 2)


__all__: Sequence[str] = ("Candidates", "Measured", "MeasuringCache")
