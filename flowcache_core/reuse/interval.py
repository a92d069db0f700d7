"""Fixed interval: one computed step, then ``interval - 1`` reused ones. The plainest rival of every adaptive policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..denoiser import ChunkInput, ModelView
from ..errors import require_count
from ..options import option
from ..schedule import Schedule
from .base import Decision, PolicyState, ReusePolicy


@dataclass(frozen=True)
class Interval(ReusePolicy):
    """After the warm-up compute every ``interval``-th of a chunk's steps."""

    name: ClassVar[str] = "interval"

    interval: int = option(
        2,
        "Only for the policy interval: compute every n-th step of a chunk.",
        minimum=1,
        maximum=1000,
        optional=True,
        place=11,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("interval", self.interval, minimum=1)

    @property
    def content_free(self) -> bool:
        return True

    def note(self, steps: int) -> str | None:
        if self.interval == 1:
            return "interval 1: every step is computed"
        return super().note(steps)

    def begin(self, schedule: Schedule, denoiser: ModelView) -> IntervalState:
        return IntervalState(schedule, self)


@dataclass
class IntervalState(PolicyState):
    policy: Interval

    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        return [self.settle(item.chunk.index, self.one(item)) for item in items]

    def one(self, item: ChunkInput) -> Decision:
        progress = self.progress(item.chunk.index)
        forced = self.policy.forced(item.step, self.schedule.steps, progress)
        if forced:
            return Decision("compute", forced)
        return Decision("compute" if progress.consecutive >= self.policy.interval - 1 else "reuse", "interval")
