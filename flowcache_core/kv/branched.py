"""K/V of guidance branches that run on devices of their own: one cache a branch, where the branch is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..plan.base import Chunk, Plan
from ..rows import Rows
from .headed import cache_of
from .layout import CompressionResult, KVLayout
from .parted import PartedCache
from .settings import KVSettings
from .spec import KVSpec


class BranchedCache(PartedCache):
    """A :class:`KVCache` in parts, one for each branch. A part lies where its branch's K/V is first written from."""

    def __init__(self, spec: KVSpec, settings: KVSettings, plan: Plan) -> None:
        settings = settings.settled(spec, plan)
        self.spec, self.settings, self.plan = spec, settings, plan
        self.parts = [cache_of(self.one(spec.device), settings, plan) for _ in range(spec.branches)]
        self.begun: list[Chunk] = []
        self.placed: set[int] = set()

    def one(self, device: str | torch.device) -> KVSpec:
        return replace(self.spec, branches=1, device=device)

    def of(self, branches: range, *tensors: Tensor) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Every branch with its rows of ``tensors [n * batch, ...]``."""
        split = [tensor.unflatten(0, (len(branches), -1)) for tensor in tensors]
        for place, branch in enumerate(branches):
            yield branch, tuple(tensor[place] for tensor in split)

    # -- a chunk's life ------------------------------------------------------------------------------------------------

    def begin(self, chunk: Chunk) -> CompressionResult | None:
        self.begun.append(chunk)
        return [part.begin(chunk) for part in self.parts][0]

    def write(self, layer: int, branches: range, chunk: Chunk, k: Tensor, v: Tensor, rows: Rows | None = None) -> None:
        for branch, (keys, values) in self.of(branches, k, v):
            if branch not in self.placed:
                self.place(branch, keys.device)
            self.parts[branch].write(layer, range(1), chunk, keys, values, rows)

    def place(self, branch: int, device: torch.device) -> None:
        """The branch is computed on ``device``: its part goes there, with nothing in it yet."""
        self.placed.add(branch)
        if device != torch.device(self.spec.device):
            self.parts[branch].release()
            self.parts[branch] = cache_of(self.one(device), self.settings, self.plan)
            for chunk in self.begun:
                self.parts[branch].begin(chunk)

    def observe(self, layer: int, branches: range, chunk: Chunk, q: Tensor) -> None:
        for branch, (queries,) in self.of(branches, q):
            self.parts[branch].observe(layer, range(1), chunk, queries)

    def context(self, layer: int, branches: range, chunk: Chunk, newest: int = 0) -> tuple[Tensor, Tensor]:
        found = [self.parts[branch].context(layer, range(1), chunk, newest=newest) for branch in branches]
        if len(found) == 1:
            return found[0]
        keys, values = zip(*found, strict=True)
        return torch.cat([key.to(keys[0].device) for key in keys]), torch.cat([v.to(keys[0].device) for v in values])

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
        outputs = [
            self.parts[branch].attend(layer, range(1), chunk, queries.to(self.device_of(branch)), attend, newest, fused)
            for branch, (queries,) in self.of(branches, q)
        ]
        return torch.cat([output.to(q.device) for output in outputs])

    def bias(self, layer: int, branches: range, chunk: Chunk, newest: int = 0) -> Tensor | None:
        found = [self.parts[branch].bias(layer, range(1), chunk, newest) for branch in branches]
        some = [one for one in found if one is not None]
        return torch.cat([one.to(some[0].device) for one in some]) if some else None

    def device_of(self, branch: int) -> torch.device:
        return torch.device(self.parts[branch].spec.device)

    def commit(self, chunk: Chunk) -> CompressionResult | None:
        return [part.commit(chunk) for part in self.parts][0]

    # -- figures -------------------------------------------------------------------------------------------------------

    @property
    def layouts(self) -> tuple[KVLayout, ...]:  # type: ignore[override]
        """Of every part the same."""
        return self.parts[0].layouts

    @property
    def keeps_alike(self) -> bool:
        return self.parts[0].keeps_alike

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def peak_bytes(self) -> int:
        return sum(part.peak_bytes for part in self.parts)

    @property
    def read_bytes(self) -> int:
        return sum(part.read_bytes for part in self.parts)

    def most_read_bytes(self, all_heads: bool = False) -> int:
        return sum(part.most_read_bytes(all_heads) for part in self.parts)

    @property
    def budget_tokens(self) -> int | None:
        return self.parts[0].budget_tokens
