"""A fixed table of computed steps, one for the first chunk and one for all later ones: nothing is measured in a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np

from ..denoiser import ChunkInput, ModelView
from ..errors import require
from ..options import option, replaced
from ..schedule import Schedule
from .base import Decision, PolicyState, ReusePolicy


@dataclass(frozen=True)
class StaticSchedule(ReusePolicy):
    """Compute exactly the own steps in ``computed`` (plus warm-up, last and capped ones), reuse at all others.

    first: the table of the chunk that begins a video, () for the same as all. It has no history to go by, so its
    velocities bend more than those of later chunks, which in turn build on it. A chunk that continues given frames is
    no such chunk.
    together: where chunks are in work side by side, compute all of them at the same ticks (:func:`in_step`) if that
    takes about as many steps. A computed chunk attends to its neighbours' K/V, which is as old as their last computed
    step; at the same tick it is fresh.
    """

    name: ClassVar[str] = "schedule"

    warmup_steps: int = replaced(ReusePolicy, "warmup_steps", 1)
    computed: tuple[int, ...] = option(
        (0,),
        "Only for the policy schedule: a chunk's own steps that are computed, counted from 0, such as 0, 1, 2, 4.",
        label="computed_steps",
        place=8,
        advanced=True,
    )
    first: tuple[int, ...] = option(
        (),
        "Only for the policy schedule: the same for the chunk that begins the video, which needs more computed steps "
        "than those that continue it. Empty: as all others.",
        label="first_chunk_steps",
        optional=True,
        place=9,
        advanced=True,
    )
    together: bool = option(
        False,
        "Only for the policy schedule: chunks that are in work side by side compute at the same ticks, spread evenly, "
        "where that takes about as many steps.",
        label="same_ticks",
        optional=True,
        place=10,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, table in (("computed_steps", self.computed), ("first_chunk_steps", self.first or (0,))):
            whole = all(isinstance(step, int) and step >= 0 for step in table)
            require(whole and 0 in table, name, table, "own steps >= 0, step 0 among them")
        for field in ("computed", "first"):  # their lengths are counted with
            object.__setattr__(self, field, tuple(sorted(set(getattr(self, field)))))

    @property
    def content_free(self) -> bool:
        return True

    def check(self, steps: int) -> None:
        super().check(steps)
        accepted = f"own steps 0..{steps - 1} of this run"
        require(max(self.computed) < steps, "computed_steps", max(self.computed), accepted)
        require(max(self.first, default=0) < steps, "first_chunk_steps", max(self.first, default=0), accepted)

    def note(self, steps: int) -> str | None:
        known = super().note(steps)
        always = set(self.computed) & set(self.first or self.computed)
        free = set(range(self.warmup_steps, steps - int(self.always_last))) - always
        if known is not None or free:
            return known
        return f"computed_steps names all {steps} steps: every step is computed"

    def begin(self, schedule: Schedule, denoiser: ModelView) -> StaticScheduleState:
        self.check(schedule.steps)
        return StaticScheduleState(schedule, self, frozenset(self.computed))


@dataclass
class StaticScheduleState(PolicyState):
    policy: StaticSchedule
    later: frozenset[int]

    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        if self.policy.together and len(items) > 1:
            offset = items[-2].step - items[-1].step
            table = in_step(len(self.policy.computed), self.schedule.steps, offset)
            self.later = frozenset(table or self.policy.computed)
        return [self.settle(item.chunk.index, self.one(item)) for item in items]

    def one(self, item: ChunkInput) -> Decision:
        forced = self.policy.forced(item.step, self.schedule.steps, self.progress(item.chunk.index))
        if forced:
            return Decision("compute", forced)
        begins = item.chunk.index == 0 and self.policy.first
        table = self.policy.first if begins else self.later
        return Decision("compute" if item.step in table else "reuse", "schedule")


@cache
def in_step(count: int, steps: int, offset: int) -> tuple[int, ...] | None:
    """Evenly spread steps that recur every ``offset``, so that chunks begun ``offset`` ticks apart share their ticks.

    At most ``count + 1`` of ``steps``, as many as fit. None when that leaves fewer than every sixth tick, where a
    schedule of its own was measured to be worth more than fresh neighbours, or much fewer than ``count``.
    """
    if not 0 < offset < steps:
        return None
    for ticks in range(offset, 0, -1):
        places = {round(i * offset / ticks) for i in range(ticks)}
        table = tuple(step for step in range(steps) if step % offset in places or step == steps - 1)
        if len(table) <= count + 1:
            return table if 6 * ticks >= offset and 5 * len(table) >= 4 * count else None
    return None


def spread(count: int, steps: int, warmup_steps: int) -> tuple[int, ...]:
    """``count`` computed steps of ``steps``: the warm-up, the last one, and the rest evenly between."""
    require(warmup_steps < count <= steps, "computed_steps", count, f"a number from {warmup_steps + 1} to {steps}")
    tail = count - warmup_steps
    span = steps - warmup_steps
    return tuple(range(warmup_steps)) + tuple(warmup_steps + (i + 1) * span // tail - 1 for i in range(tail))


def stretch(computed: Sequence[int], made_for: int, steps: int) -> tuple[int, ...]:
    """The same share and shape of schedule on another number of steps; first and last step stay computed."""
    scale = (steps - 1) / max(1, made_for - 1)
    count = max(2, round(len(computed) * steps / made_for))
    places = np.linspace(0, len(computed) - 1, count)
    nodes = np.interp(places, range(len(computed)), sorted(computed)) * scale
    return tuple(sorted({round(float(node)) for node in nodes} | {0, steps - 1}))
