"""Masks that serve again: how many, and how much of the attention that fresh ones would keep they keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flowcache_core.calibrate.runs import Pair, Setup, Specimen, generated
from flowcache_core.denoiser import ChunkInput, ChunkOutput
from flowcache_core.kv.cache import KVCache
from flowcache_core.sparse.forward import Dense, SparseForward
from flowcache_core.sparse.mask_reuse import MaskReuse
from flowcache_core.sparse.settings import SparseSettings
from flowcache_core.sparse.xattention import XAttention

DRIFTS = (0.05, 0.1, 0.2, 0.5)


def mass(q: Tensor, k: Tensor, kept: Tensor, block: int) -> float:
    """Mean share of the true attention that lies in kept blocks; by definition, so for small models."""
    weights = (q.float() @ k.float().mT * q.shape[-1] ** -0.5).softmax(-1)
    tokens = kept.repeat_interleave(block, 2)[:, :, : q.shape[2]].repeat_interleave(block, 3)[..., : k.shape[2]]
    return float((weights * tokens).sum(-1).mean())


@dataclass
class Watched:
    """A run's own sparse attention, with the attention its masks keep beside what fresh ones would keep."""

    inner: SparseForward
    kept: list[tuple[float, float]] = field(default_factory=list)

    def attend(self, layer: int, branches: range, q: Tensor, k: Tensor, v: Tensor, dense: Dense, **rest: Any) -> Tensor:
        before = self.inner.served
        out = self.inner.attend(layer, branches, q, k, v, dense, **rest)
        memory = self.inner.run.masks
        if self.inner.served > before and memory is not None:
            parts = [memory.masks[self.inner.chunk, branch].kept[layer] for branch in branches]
            fresh = self.inner.run.method.mask(q, k, layer)
            used = torch.cat([part for part in parts if part is not None])
            self.kept.append((mass(q, k, used, fresh.block), mass(q, k, fresh.kept, fresh.block)))
        return out


class Watching:
    """A denoiser whose forwards are watched."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.kept = inner, list[tuple[float, float]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def compute(self, item: ChunkInput, cache: KVCache, **rest: Any) -> ChunkOutput:
        watched = Watched(item.sparse)  # type: ignore[arg-type]
        output: ChunkOutput = self.inner.compute(replace(item, sparse=watched), cache, **rest)
        self.kept += watched.kept
        return output


def measure(specimen: Specimen, pairs: Sequence[Pair], setup: Setup, block: int, stride: int) -> list[dict[str, Any]]:
    """One row per drift, and one for masks of the chunk before at drift 0.2."""
    rows = []
    for across, drift in (*((False, drift) for drift in DRIFTS), (True, 0.2)):
        settings = SparseSettings(XAttention(block, 0.8, stride), reuse=MaskReuse(drift, across_chunks=across))
        made = served = 0
        kept: list[tuple[float, float]] = []
        for prompt, seed in pairs:
            watching = Watching(specimen.denoiser([prompt], setup))
            shares: list[Any] = []
            generated(specimen, setup, [(prompt, seed)], denoiser=watching, observe=shares.append, sparse=settings)
            made += sum(getattr(event, "masks_made", 0) for event in shares)
            served += sum(getattr(event, "masks_served", 0) for event in shares)
            kept += watching.kept
        used, fresh = (sum(values) / len(kept) for values in zip(*kept, strict=True))
        row = {"drift": drift, "across_chunks": across, "served": served / (made + served)}
        rows.append({**row, "mass": used, "fresh_mass": fresh, "of_fresh": used / fresh})
    return rows
