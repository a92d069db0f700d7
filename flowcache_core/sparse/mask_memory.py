"""The masks of a run that still serve, per chunk and guidance branch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .context_layout import ContextLayout, moved
from .mask_reuse import NO_MASK, MaskReuse, drift, means

Key = tuple[int, int]
"""Chunk and branch."""


@dataclass(frozen=True)
class Snapshot:
    """What a chunk's masks were at one step: per layer ``kept [B, heads, Qb, Kb]`` and anchor ``[2, B, heads, D]``,
    None in a layer that is dense.
    """

    layout: ContextLayout
    kept: tuple[Tensor | None, ...]
    anchors: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Refresh:
    """What happens to the masks of a chunk at a step: bool ``[layers, heads]``, on the CPU. The others serve again."""

    predicted: Tensor
    adopted: Tensor


@dataclass
class _Masks:
    """State of one chunk and branch. Per layer, None before the first step: kept, anchors, and means of the step
    computed last. age: int64 ``[layers, heads]``, computed steps since a mask was made.
    """

    layout: ContextLayout
    kept: list[Tensor | None]
    anchors: list[Tensor | None]
    means: list[Tensor | None]
    age: Tensor
    predicted: Tensor


@dataclass
class MaskMemory:
    """Use per computed step of a chunk and branch: :meth:`drifts` for all before the tick's one device sync,
    :meth:`decide` after it, :meth:`kept` in every layer, :meth:`leave` when all are done. :meth:`finish` a chunk.

    Decisions rest on the means of the step before, so they need no sync of their own.
    """

    reuse: MaskReuse
    layers: int
    heads: int
    block: int
    masks: dict[Key, _Masks] = field(default_factory=dict)
    history: dict[Key, dict[int, Snapshot]] = field(default_factory=dict)

    def drifts(self, key: Key, step: int) -> Tensor | None:
        """fp32 ``[2, layers, heads]`` on the device: drift from the chunk's own anchors, and from those of the chunk
        before at ``step`` (NaN where there are none). None when nothing is known of the chunk yet.
        """
        own = self.masks.get(key)
        if own is None or all(mean is None for mean in own.means):
            return None
        before = self._before(key, step)
        mine = self._drift(own.means, own.anchors)
        fits = before is not None and before.layout.batch == own.layout.batch
        theirs = self._drift(own.means, before.anchors) if before and fits else mine * torch.nan
        return torch.stack((mine, theirs))

    def _drift(self, now: Sequence[Tensor | None], anchors: Sequence[Tensor | None]) -> Tensor:
        """fp32 ``[layers, heads]``; 0 in layers that never call :meth:`kept`."""
        zeros = next(torch.zeros_like(mean) for mean in now if mean is not None)
        of = [(zeros, zeros) if a is None or b is None else (a, b) for a, b in zip(now, anchors, strict=True)]
        return drift(torch.stack([a for a, _ in of]), torch.stack([b for _, b in of]), self.reuse.relative)

    def decide(self, key: Key, step: int, layout: ContextLayout, drifts: Tensor | None) -> Refresh:
        """Which heads predict at ``step``, which take over the mask of the chunk before. ``drifts``: what
        :meth:`drifts` gave, on the CPU. Masks of another layout are dropped first.
        """
        own = self.masks.get(key)
        if own is None or own.layout != layout:
            shape = self.layers, self.heads
            nothing: list[Tensor | None] = [None] * self.layers
            means_then = own.means if own is not None else list(nothing)
            never = torch.full(shape, NO_MASK)
            own = _Masks(layout, list(nothing), list(nothing), means_then, never, torch.zeros(shape, dtype=torch.bool))
            self.masks[key] = own
        unknown = torch.full((2, self.layers, self.heads), torch.nan)
        mine, theirs = unknown if drifts is None else drifts
        wanted = self.reuse.refresh(mine, own.age)
        adopted = self._adopt(key, step, own, wanted, theirs)
        own.predicted = wanted & ~adopted
        own.age = torch.where(wanted, 0, own.age + 1)
        return Refresh(own.predicted, adopted)

    def kept(
        self,
        key: Key,
        layer: int,
        q: Tensor,
        own_keys: Tensor,
        predict: Callable[[Sequence[int]], Tensor],
        columns: int | None = None,
    ) -> Tensor:
        """bool ``[B, heads, Qb, Kb]``: the masks of ``layer`` at the step decided. ``predict(heads)`` makes those of
        some heads, ``[B, len(heads), Qb, Kb]``; ``q`` and ``own_keys`` are the chunk's, as :func:`means` takes them.
        columns: Kb where the model may see less of the context than before: then all heads predict.
        """
        own = self.masks[key]
        now = means(q, own_keys)
        own.means[layer] = now
        fresh = torch.nonzero(own.predicted[layer]).flatten().tolist()
        before = own.kept[layer]
        if before is None or columns not in (None, before.shape[-1]):
            fresh = list(range(self.heads))
        if fresh:
            own.kept[layer] = _replaced(before, predict(fresh), fresh, self.heads, 1)
            own.anchors[layer] = _replaced(own.anchors[layer], _taken(now, fresh, 2), fresh, self.heads, 2)
        kept = own.kept[layer]
        assert kept is not None
        return kept

    def leave(self, key: Key, step: int) -> None:
        """The step is computed in all layers: remember its masks for the chunk behind."""
        own = self.masks[key]
        if self.reuse.across_chunks:
            self.history.setdefault(key, {})[step] = Snapshot(own.layout, tuple(own.kept), tuple(own.anchors))

    def finish(self, chunk: int) -> None:
        """Drop what is known of ``chunk`` but for what the chunk behind it may take over."""
        self.masks = {key: masks for key, masks in self.masks.items() if key[0] != chunk}
        self.history = {key: steps for key, steps in self.history.items() if key[0] >= chunk}

    @property
    def bytes(self) -> int:
        """Memory of all masks held, each tensor counted once."""
        held = [kept for masks in self.masks.values() for kept in masks.kept if kept is not None]
        snapshots = [snapshot for steps in self.history.values() for snapshot in steps.values()]
        held += [kept for snapshot in snapshots for kept in snapshot.kept if kept is not None]
        return sum({id(kept): kept.numel() for kept in held}.values())

    def _before(self, key: Key, step: int) -> Snapshot | None:
        """Masks that the chunk before ``key``'s had at ``step``: those of its last computed step up to there."""
        steps = self.history.get((key[0] - 1, key[1]), {})
        return steps[max(known)] if (known := [other for other in steps if other <= step]) else None

    def _adopt(self, key: Key, step: int, own: _Masks, wanted: Tensor, drifts: Tensor) -> Tensor:
        """Heads among ``wanted`` that take over a mask of the chunk before: one that would serve if it were their own,
        or any where nothing is known of the chunk yet.
        """
        before = self._before(key, step)
        by = None if before is None else own.layout.moved_from(before.layout, self.block)
        if before is None or by is None:
            return torch.zeros_like(wanted)
        first = all(mean is None for mean in own.means)
        there = torch.tensor([kept is not None for kept in before.kept]).unsqueeze(-1)
        adopted = wanted & there & (torch.ones_like(wanted) if first else drifts <= self.reuse.drift)
        for layer in torch.nonzero(adopted.any(-1)).flatten().tolist():
            heads = torch.nonzero(adopted[layer]).flatten().tolist()
            kept, anchor = before.kept[layer], before.anchors[layer]
            assert kept is not None and anchor is not None
            kept = moved(kept, by)
            own.kept[layer] = _replaced(own.kept[layer], _taken(kept, heads, 1), heads, self.heads, 1)
            own.anchors[layer] = _replaced(own.anchors[layer], _taken(anchor, heads, 2), heads, self.heads, 2)
        return adopted


def _taken(x: Tensor, heads: Sequence[int], dim: int) -> Tensor:
    """``heads`` of ``x`` along ``dim``, without an index that had to go to the GPU."""
    return x if len(heads) == x.shape[dim] else torch.stack([x.select(dim, head) for head in heads], dim)


def _replaced(old: Tensor | None, new: Tensor, heads: Sequence[int], count: int, dim: int) -> Tensor:
    """``old`` with ``new`` in the place of ``heads`` along ``dim``, as a new tensor: snapshots hold the old one."""
    if len(heads) == count:
        return new
    parts = list((new.new_zeros(*new.shape[:dim], count, *new.shape[dim + 1 :]) if old is None else old).unbind(dim))
    for head, part in zip(heads, new.unbind(dim), strict=True):
        parts[head] = part
    return torch.stack(parts, dim)
