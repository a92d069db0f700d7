"""Given bytes: which storage, which compressor, and how much of the history a layer or head keeps, by measured error.

For every storage and compressor the budgets of all layers, or of groups of their heads, are a knapsack: the error that
a part's budget costs, and its bytes. It is solved exactly (``sparse/assignment.py``: dynamic programming over states
that nothing beats), once for each size of the buffer that packed parts are read into, which all of them share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import SettingError
from ..plan.base import Plan
from ..sparse.assignment import assign, least_error
from . import COMPRESSORS
from .compressor import Compressor
from .layout import history_frames, largest_chunk_frames
from .profile import ErrorProfile
from .settings import KVSettings
from .size import layer_bytes, read_bytes, run_bytes
from .spec import KVSpec
from .storage import STORAGES

MOST_BUDGETS = 24
MOST_GROUPS = 4
STEP = 0.25
MEGA = 1_000_000
_SHY = 1 - 1e-9
"""Of the bytes: :func:`assign` adds in fixed point and may be over by less than that."""


@dataclass(frozen=True)
class Allocation:
    """settings: without a budget where everything fits. error: mean over layers; bytes: what a run takes at most.
    guessed: less is kept than was ever measured."""

    settings: KVSettings
    error: float
    bytes: int
    guessed: bool = False

    def text(self, megabytes: float, profile: ErrorProfile, own: bool) -> str:
        """In one line: what was chosen, for how much, and by whose errors."""
        budgets, settings = self.settings.budgets, self.settings
        if not budgets:
            kept = "the whole history"
        elif min(budgets) == max(budgets):
            kept = f"budget {budgets[0]:g} chunks"
        else:
            mean = sum(budgets) / len(budgets)
            parts = "layer and head" if settings.by_head else "layer"
            kept = f"budget {mean:.3g} chunks ({min(budgets):g} to {max(budgets):g} by {parts})"
        if budgets and settings.compressor:
            kept = f"{kept}, {settings.compressor.name}"
        where = f"measured on {profile.model}" if own else f"on {profile.model}, not on this model"
        size = f"{self.bytes / MEGA:.4g} of {megabytes:g} MB"
        error = f"{'about ' if self.guessed else ''}{self.error:.1%}"
        beyond = ", where less of the history was never kept" if self.guessed else ""
        return f"{kept}, storage {settings.storage.name}: {size}; attention error {error}, {where}{beyond}"


@dataclass(frozen=True)
class Choice:
    """One storage and compressor. ``error[part][k]`` and ``bytes[part][k]``: of budget ``budgets[k]``, rising, in a
    layer, or in a group of its heads; ``read[k]``: of what packed parts are read into, when none keeps more than that.

    groups: K/V heads of each part, those of a layer one after the other; None where parts are whole layers.
    """

    settings: KVSettings
    budgets: tuple[float, ...]
    error: np.ndarray
    bytes: np.ndarray
    read: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...] | None = None

    @property
    def caps(self) -> range:
        """Places in ``budgets`` of the most that a part may keep; where it is all the same, the last alone."""
        last = len(self.budgets) - 1
        return range(last, last + 1) if len(set(self.read)) == 1 else range(last + 1)

    def uniform(self, cap: int) -> Solution:
        """The same budget for all."""
        total = int(self.bytes[:, cap].sum()) + self.read[cap]
        return Solution(float(self.error[:, cap].mean()), total, (self.budgets[cap],) * len(self.error))

    def least(self, cap: int, room: int) -> float:
        """No solution within ``room`` and up to this cap has less error, as a sum; infinite where none fits."""
        errors, cost, left = self.error[:, : cap + 1], self.bytes[:, : cap + 1], room - self.read[cap]
        if int(cost.min(1).sum()) > left * _SHY:
            return np.inf
        return least_error(errors, np.minimum(cost / left, 1.0), _SHY / len(errors))

    def solved(self, cap: int, room: int) -> Solution:
        """The least error within ``room`` and up to this cap, as a sum over parts."""
        errors, cost, left = self.error[:, : cap + 1], self.bytes[:, : cap + 1], room - self.read[cap]
        # What exceeds the room by itself stands for all of it: it is too much beside any other part.
        best = assign(errors, np.minimum(cost / left, 1.0), _SHY / len(errors))
        total = int(sum(cost[part, k] for part, k in enumerate(best.choice)))
        return Solution(best.error, total + self.read[cap], tuple(self.budgets[k] for k in best.choice))

    def budget(self, by_part: Sequence[float], layers: int) -> float | tuple[float | tuple[float, ...], ...]:
        """``KVSettings.budget`` of a solution."""
        if len(set(by_part)) == 1:
            return by_part[0]
        if self.groups is None:
            return tuple(by_part)
        rows, each = [], len(by_part) // layers
        for layer in range(layers):
            own = slice(layer * each, (layer + 1) * each)
            by_head = {
                head: budget for heads, budget in zip(self.groups[own], by_part[own], strict=True) for head in heads
            }
            row = tuple(by_head[head] for head in sorted(by_head))
            rows.append(row if len(set(row)) > 1 else row[0])
        return tuple(rows)


@dataclass(frozen=True)
class Solution:
    """error: mean or sum over parts, as whoever made it says. budgets: of every part."""

    error: float
    bytes: int
    budgets: tuple[float, ...]


def allocate(
    spec: KVSpec,
    plan: Plan,
    megabytes: float,
    profile: ErrorProfile,
    own: bool,
    base: KVSettings,
    heads: bool = True,
) -> Allocation:
    """The least error within ``megabytes`` (10^6 bytes, what packed layers are read into included).

    own: whether the profile is this model's, so that layers get shares of their own, and with ``heads`` groups of heads
    too; otherwise all get the same. base: number format and device. SettingError naming the least that works.
    """
    room = int(megabytes * MEGA)
    whole = replace(base, budget=None, compressor=None)
    if run_bytes(spec, whole, plan) <= room:
        return Allocation(whole, 0.0, run_bytes(spec, whole, plan))
    offered = list(choices(spec, plan, profile, own, base, heads))
    found = of_layers(spec, plan, offered, room) if own else of_all(offered, room)
    if found is None:
        least = min((one for one in offered if one.groups is None), key=lambda one: one.uniform(0).bytes)
        size, budget = least.uniform(0).bytes, least.budgets[0]
        count = "1 finished chunk" if budget == 1 else f"{budget:g} finished chunks"
        how = f"{count} as {least.settings.storage.name}, with the active ones"
        accepted = f"{-(-size // 10_000) / 100:g} or more: {how}; a smaller picture needs less"
        raise SettingError("megabytes", megabytes, accepted)
    settings, solution = found
    assert settings.compressor is not None
    history = history_frames(plan) / largest_chunk_frames(plan)
    least_share = profile.least_share(settings.compressor.name, settings.storage.name)
    return Allocation(settings, solution.error, solution.bytes, min(solution.budgets) < least_share * history)


def of_all(offered: Sequence[Choice], room: int) -> tuple[KVSettings, Solution] | None:
    """The best with one budget for all; of equal ones that with fewer bytes. None where nothing fits."""
    fitting = [
        (solution.error, solution.bytes, at, solution)
        for at, one in enumerate(offered)
        for solution in map(one.uniform, range(len(one.budgets)))
        if solution.bytes <= room
    ]
    if not fitting:
        return None
    *_, at, solution = min(fitting)
    return replace(offered[at].settings, budget=solution.budgets[0]), solution


def of_layers(spec: KVSpec, plan: Plan, offered: Sequence[Choice], room: int) -> tuple[KVSettings, Solution] | None:
    """The best with a budget for every part: what promises most is solved first, until nothing promises more."""
    tasks = [(one.least(cap, room), at, cap) for at, one in enumerate(offered) for cap in one.caps]
    best: tuple[KVSettings, Solution] | None = None
    for least, at, cap in sorted(tasks):
        if least == np.inf or (best is not None and least >= best[1].error * spec.layers):
            break
        one, solution = offered[at], offered[at].solved(cap, room)
        error = solution.error / spec.layers
        if best is not None and error >= best[1].error:
            continue
        settings = replace(one.settings, budget=one.budget(solution.budgets, spec.layers))
        size = run_bytes(spec, settings, plan)
        if size <= room:  # groups that came out alike are one, and read at once
            best = settings, replace(solution, error=error, bytes=size)
    return best


def choices(
    spec: KVSpec, plan: Plan, profile: ErrorProfile, own: bool, base: KVSettings, heads: bool = False
) -> Iterator[Choice]:
    """For every compressor and storage of the profile that fits the model; with ``heads`` by groups of heads too."""
    history = history_frames(plan) / largest_chunk_frames(plan)
    many = groups_of(spec.kv_heads) if own and heads and profile.by_head else 1
    for name, by_storage in profile.errors.items():
        compressor = COMPRESSORS[name]()
        budgets = tuple(budgets_up_to(history, compressor))
        shares = [min(1.0, budget / max(history, 1e-9)) for budget in budgets]
        for stored in by_storage:
            storage = STORAGES[stored]()
            settings = replace(base, budget=budgets[0], compressor=compressor, storage=storage)
            if not fits(spec, settings, plan):
                continue
            kept = [replace(settings, budget=budget) for budget in budgets]
            layers = range(spec.layers)
            error = [
                [profile.error(name, stored, share, layer if own else None) for share in shares] for layer in layers
            ]
            yield Choice(settings, budgets, np.array(error), *sizes(spec, plan, kept, spec.layers))
            if many > 1:
                by_head = np.array([profile.parts(name, stored, share) for share in shares]).T
                by_head = by_head.reshape(spec.layers, spec.kv_heads, -1)
                groups, lost = grouped(by_head, many)
                few = spec.of_heads(spec.kv_heads // many)
                yield Choice(settings, budgets, lost, *sizes(few, plan, kept, len(groups)), groups)


def groups_of(heads: int) -> int:
    """Into how many groups of equally many a layer's heads go, at most :data:`MOST_GROUPS`: each attends by itself."""
    return max(count for count in range(1, MOST_GROUPS + 1) if heads % count == 0)


def grouped(by_head: np.ndarray, many: int) -> tuple[tuple[tuple[int, ...], ...], np.ndarray]:
    """Heads that lose alike, ``many`` groups of them for each layer of ``by_head [layers, heads, budgets]``: those that
    come next to each other by mean error, layer by layer; and what each group loses ``[groups, budgets]``."""
    orders = [np.argsort(layer.mean(1), kind="stable").reshape(many, -1) for layer in by_head]
    groups = tuple(tuple(group.tolist()) for order in orders for group in order)
    return groups, np.array([by_head[at // many, list(group)].sum(0) for at, group in enumerate(groups)])


def sizes(spec: KVSpec, plan: Plan, kept: Sequence[KVSettings], parts: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """Bytes ``[parts][budget]`` of each part, and of the buffer, with each of ``kept``."""
    one = [layer_bytes(spec, settings, plan, settings.budgets[0]) for settings in kept]
    return np.tile(np.array(one), (parts, 1)), tuple(read_bytes(spec, settings, plan) for settings in kept)


def fits(spec: KVSpec, settings: KVSettings, plan: Plan) -> bool:
    """Whether the storage takes heads of this size."""
    try:
        layer_bytes(spec, settings, plan, settings.budgets[0])
    except SettingError:
        return False
    return True


def budgets_up_to(history: float, compressor: Compressor) -> Sequence[float]:
    """From the least that the compressor works with up to the whole history, at most :data:`MOST_BUDGETS`."""
    least = compressor.min_budget
    if history <= least:
        return [least]
    count = int((history - least) / STEP) + 1
    if count <= MOST_BUDGETS:
        inner = [least + STEP * i for i in range(count)]
    else:
        ratio = (history / least) ** (1 / (MOST_BUDGETS - 1))
        inner = [round(least * ratio**i / STEP) * STEP for i in range(MOST_BUDGETS)]
    return sorted({*(one for one in inner if one < history), history})
