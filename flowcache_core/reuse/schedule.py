"""A fixed table of computed steps, the same for every chunk: a calibrated or published schedule, nothing measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..denoiser import ChunkInput, Denoiser
from ..errors import require
from ..schedule import Schedule
from .base import Decision, PolicyState, ReusePolicy


@dataclass(frozen=True)
class StaticSchedule(ReusePolicy):
    """Compute exactly the own steps in ``computed`` (plus warm-up, last and capped ones), reuse at all others."""

    name: ClassVar[str] = "schedule"

    warmup_steps: int = 1
    computed: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = all(isinstance(step, int) and step >= 0 for step in self.computed)
        require(whole and 0 in self.computed, "computed steps", self.computed, "own steps >= 0, step 0 among them")

    def begin(self, schedule: Schedule, denoiser: Denoiser) -> StaticScheduleState:
        limit = schedule.steps - 1
        require(max(self.computed) <= limit, "computed steps", max(self.computed), f"own steps 0..{limit} of this run")
        return StaticScheduleState(schedule, self, frozenset(self.computed))


@dataclass
class StaticScheduleState(PolicyState):
    policy: StaticSchedule
    computed: frozenset[int]

    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        return [self.settle(item.chunk.index, self.one(item)) for item in items]

    def one(self, item: ChunkInput) -> Decision:
        forced = self.policy.forced(item.step, self.schedule.steps, self.progress(item.chunk.index))
        if forced:
            return Decision("compute", forced)
        return Decision("compute" if item.step in self.computed else "reuse", "schedule")


def spread(count: int, steps: int, warmup_steps: int) -> tuple[int, ...]:
    """``count`` computed steps of ``steps``: the warm-up, the last one, and the rest evenly between."""
    require(warmup_steps < count <= steps, "computed steps", count, f"a number from {warmup_steps + 1} to {steps}")
    tail = count - warmup_steps
    span = steps - warmup_steps
    return tuple(range(warmup_steps)) + tuple(warmup_steps + (i + 1) * span // tail - 1 for i in range(tail))
