"""Given bytes: which storage, which compressor, and how much of the history each layer keeps, by measured error.

For every storage and compressor the budgets of all layers are a knapsack: the error that a layer's budget costs, and
its bytes. It is solved exactly (``sparse/assignment.py``: dynamic programming over states that nothing beats), once for
each size of the buffer that packed layers are read into, which all layers share.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import SettingError
from ..plan.base import Plan
from ..sparse.assignment import assign
from . import COMPRESSORS
from .compressor import Compressor
from .layout import history_frames, largest_chunk_frames
from .profile import ErrorProfile
from .settings import KVSettings
from .size import layer_bytes, read_bytes, run_bytes
from .spec import KVSpec
from .storage import STORAGES

MOST_BUDGETS = 24
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
            kept = f"budget {mean:.3g} chunks ({min(budgets):g} to {max(budgets):g} by layer)"
        how = f", {settings.compressor.name}" if budgets and settings.compressor else ""
        where = f"measured on {profile.model}" if own else f"on {profile.model}, not on this model"
        size = f"{self.bytes / MEGA:.4g} of {megabytes:g} MB"
        error = f"{'about ' if self.guessed else ''}{self.error:.1%}"
        beyond = ", where less of the history was never kept" if self.guessed else ""
        return f"{kept}{how}, storage {settings.storage.name}: {size}; attention error {error}, {where}{beyond}"


@dataclass(frozen=True)
class Choice:
    """One storage and compressor: ``error[layer][k]`` and ``bytes[layer][k]`` of budget ``budgets[k]``, rising."""

    settings: KVSettings
    budgets: tuple[float, ...]
    error: np.ndarray
    bytes: np.ndarray
    read: tuple[int, ...]

    def best(self, room: int, uniform: bool) -> tuple[float, int, tuple[float, ...]] | None:
        """Least error, bytes and budgets by layer within ``room``; None where nothing fits."""
        found: list[tuple[float, int, tuple[float, ...]]] = []
        layers = len(self.error)
        for cap in range(len(self.budgets)):
            left = room - self.read[cap]
            if uniform:
                total = int(self.bytes[:, cap].sum())
                if total <= left:
                    error = float(self.error[:, cap].mean())
                    found.append((error, total + self.read[cap], (self.budgets[cap],) * layers))
                continue
            errors, cost = self.error[:, : cap + 1], self.bytes[:, : cap + 1]
            if int(cost.min(1).sum()) > left * _SHY:
                continue
            # What exceeds the room by itself stands for all of it: it is too much beside any other layer.
            best = assign(errors, np.minimum(cost / left, 1.0), _SHY / layers)
            total = int(sum(cost[layer, k] for layer, k in enumerate(best.choice)))
            found.append((best.error / layers, total + self.read[cap], tuple(self.budgets[k] for k in best.choice)))
        return min(found, default=None)


def allocate(
    spec: KVSpec,
    plan: Plan,
    megabytes: float,
    profile: ErrorProfile,
    own: bool,
    base: KVSettings,
) -> Allocation:
    """The least error within ``megabytes`` (10^6 bytes, what packed layers are read into included).

    own: whether the profile is this model's, so that layers get shares of their own; otherwise all get the same. base:
    number format and device. SettingError naming the least that works.
    """
    room = int(megabytes * MEGA)
    whole = replace(base, budget=None, compressor=None)
    if run_bytes(spec, whole, plan) <= room:
        return Allocation(whole, 0.0, run_bytes(spec, whole, plan))
    found: list[tuple[float, int, tuple[float, ...], KVSettings]] = []
    least: list[tuple[int, KVSettings, float]] = []
    for choice in choices(spec, plan, profile, own, base):
        smallest = int(choice.bytes[:, 0].sum()) + choice.read[0]
        least.append((smallest, choice.settings, choice.budgets[0]))
        best = choice.best(room, not own)
        if best is not None:
            found.append((*best, choice.settings))
    if not found:
        size, settings, budget = min(least, key=lambda one: one[0])
        chunks = "chunk" if budget == 1 else "chunks"
        how = f"{budget:g} finished {chunks} as {settings.storage.name}, with the active ones"
        accepted = f"{-(-size // 10_000) / 100:g} or more: {how}; a smaller picture needs less"
        raise SettingError("megabytes", megabytes, accepted)
    error, size, budgets, settings = min(found, key=lambda one: one[:2])
    chosen: float | tuple[float, ...] = budgets if len(set(budgets)) > 1 else budgets[0]
    assert settings.compressor is not None
    history = history_frames(plan) / largest_chunk_frames(plan)
    least_share = profile.least_share(settings.compressor.name, settings.storage.name)
    guessed = min(budgets) < least_share * history
    return Allocation(replace(settings, budget=chosen), error, size, guessed)


def choices(spec: KVSpec, plan: Plan, profile: ErrorProfile, own: bool, base: KVSettings) -> Iterator[Choice]:
    history = history_frames(plan) / largest_chunk_frames(plan)
    for name, by_storage in profile.errors.items():
        compressor = COMPRESSORS[name]()
        budgets = tuple(budgets_up_to(history, compressor))
        for stored in by_storage:
            storage = STORAGES[stored]()
            settings = replace(base, budget=budgets[0], compressor=compressor, storage=storage)
            if not fits(spec, settings, plan):
                continue
            one = [replace(settings, budget=budget) for budget in budgets]
            error = np.array(
                [
                    [profile.error(name, stored, min(1.0, budget / max(history, 1e-9)), layer if own else None)
                     for budget in budgets]
                    for layer in range(spec.layers)
                ]
            )  # fmt: skip
            size = np.array(
                [layer_bytes(spec, given, plan, budget) for given, budget in zip(one, budgets, strict=True)]
            )
            read = tuple(read_bytes(spec, given, plan) for given in one)
            yield Choice(settings, budgets, error, np.tile(size, (spec.layers, 1)), read)


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
