"""Which K/V heads keep equally much: a model's heads in groups, each with a budget for every layer.

Heads of unequal budgets cannot share a tensor without padding. So those with the least of every layer make one group,
those with the next more another, and so on: each group is a K/V cache by itself (:mod:`.headed`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from .settings import KVSettings
from .spec import KVSpec


@dataclass(frozen=True)
class HeadShare:
    """``heads[layer]``, ascending: K/V heads with ``settings``, which have one budget a layer; of every layer equally
    many."""

    heads: tuple[tuple[int, ...], ...]
    settings: KVSettings

    def spec(self, whole: KVSpec) -> KVSpec:
        """Of these heads alone."""
        return whole.of_heads(len(self.heads[0]))


def head_shares(spec: KVSpec, settings: KVSettings) -> tuple[HeadShare, ...]:
    """From the smallest budgets to the largest. SettingError where the model has another number of layers or heads."""
    rows = settings.head_budgets(spec)
    orders = [sorted(range(spec.kv_heads), key=row.__getitem__) for row in rows]
    rising = [[row[head] for head in order] for row, order in zip(rows, orders, strict=True)]
    cuts = [at for at in range(1, spec.kv_heads) if any(one[at] != one[at - 1] for one in rising)]
    found = []
    for first, last in pairwise((0, *cuts, spec.kv_heads)):
        heads = tuple(tuple(sorted(order[first:last])) for order in orders)
        found.append(HeadShare(heads, replace(settings, budget=tuple(one[first] for one in rising))))
    return tuple(found)
