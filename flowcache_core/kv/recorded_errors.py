"""Measure what keeping less would have done: a cache that keeps all, and asks at some steps what else it could.

For every compressor, storage and budget the attention of some of the last chunk's queries is computed a second time,
over what would have been kept and as it would have been stored, and compared with that over everything. Compressed
is at once and not chunk by chunk, with the queries that a compression would have: those of the chunk before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


class MeasuringCache(KVCache):
    """Of one run with all branches in one forward. ``steps``: at which of the last chunk's steps it measures."""

    def __init__(self, spec: KVSpec, plan: Plan, candidates: Candidates, steps: Sequence[int]) -> None:
        super().__init__(spec, KVSettings(), plan)
        self.candidates, self.at = candidates, frozenset(steps)
        self.last, self.tokens_of_chunk = plan.chunks[-1], largest_chunk_frames(plan) * spec.tokens_per_frame
        self.found: dict[Key, list[float]] = {}
        self.whole = [0.0] * spec.layers
        self._asked: dict[int, int] = {}
        self._queries: dict[int, Tensor] = {}

    def observe(self, layer: int, branches: range, chunk: Chunk, q: Tensor) -> None:
        if chunk.index == self.last.index - 1:
            self._queries[layer] = q.detach().clone()

    def attend(
        self,
        layer: int,
        branches: range,
        chunk: Chunk,
        q: Tensor,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
        newest: int = 0,
    ) -> Tensor:
        out = super().attend(layer, branches, chunk, q, attend, newest)
        if chunk.index == self.last.index:
            asked = self._asked[layer] = self._asked.get(layer, -1) + 1
            if asked in self.at and newest == 0:
                self._measure(layer, branches, q, attend)
        return out

    def _measure(
        self, layer: int, branches: range, q: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> None:
        keys, values = self.context(layer, branches, self.last)
        own, _ = self.layouts[layer].span(self.last.index)
        rows = torch.arange(min(QUERIES, q.shape[2])) * q.shape[2] // min(QUERIES, q.shape[2])
        asking = q[:, :, rows.to(q.device)]
        whole = attend(asking, keys, values).float()
        self.whole[layer] += float(whole.square().sum())
        stored = {
            one.name: self._as_stored(one, keys[:, :, :own], values[:, :, :own]) for one in self.candidates.storages
        }
        region = self._region(layer, keys[:, :, :own], values[:, :, :own])
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
                    seen = torch.cat((k, keys[:, :, own:]), 2), torch.cat((v, values[:, :, own:]), 2)
                    lost = float((attend(asking, *seen).float() - whole).square().sum())
                    self.found.setdefault((compressor.name, name, budget), [0.0] * self.spec.layers)[layer] += lost

    def _region(self, layer: int, keys: Tensor, values: Tensor) -> Region:
        places = torch.arange(keys.shape[2], dtype=torch.int32, device=keys.device).expand(keys.shape[:3])
        starts, tokens = self._chunk_starts, self.spec.tokens_per_frame
        queries = self._queries.get(layer)
        return Region(keys, values, queries, places, tokens, self.tokens_of_chunk, starts, layer, 0)

    def _as_stored(self, storage: Storage, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Finished chunks after packing and unpacking, chunk by chunk as they are committed."""
        if not isinstance(storage, Packed):
            return keys, values
        of_keys, of_values, most = storage.codecs(self.spec.head_dim, self.tokens_of_chunk)
        sizes = [chunk.frames * self.spec.tokens_per_frame for chunk in self.plan.chunks[: self.last.index]]
        return _packed(of_keys, keys, sizes, most), _packed(of_values, values, sizes, most)

    def profile(self, model: str, spec: KVSpec) -> ErrorProfile:
        """What was measured; budgets as shares of the finished chunks before the last."""
        history = self._chunk_starts[self.last.index] / self.tokens_of_chunk
        budgets = sorted({budget for *_, budget in self.found if budget <= history})
        errors: dict[str, dict[str, tuple[tuple[float, ...], ...]]] = {}
        for compressor, storage in dict.fromkeys(key[:2] for key in self.found):
            rows = []
            for budget in budgets:
                if lost := self.found.get((compressor, storage, budget)):
                    row = (a / b for a, b in zip(lost, self.whole, strict=True))
                    rows.append(tuple(float(f"{value:.4g}") for value in row))
            errors.setdefault(compressor, {})[storage] = tuple(rows)
        return ErrorProfile(model, Sizes.of(spec), tuple(budget / history for budget in budgets), errors)


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


__all__: Sequence[str] = ("Candidates", "MeasuringCache")
