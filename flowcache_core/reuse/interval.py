"""Fixed interval: one computed step, then ``interval - 1`` reused ones. The plainest rival of every adaptive policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ..denoiser import ChunkInput, ModelView
from ..errors import require_count, require_finite
from ..options import option
from ..schedule import Schedule
from .base import Decision, PolicyState, ReusePolicy


@dataclass(frozen=True)
class Interval(ReusePolicy):
    """After the warm-up compute every ``interval``-th of a chunk's steps.

    growth: by how much the interval grows with each of them, whole parts counting: early steps are computed more often
    (Spectrum, arXiv 2603.01623: interval 2, growth 0.75).
    """

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

    growth: float = option(
        0.0,
        "Only for the policy interval: by how much the interval grows with each computed step.",
        label="interval_growth",
        minimum=0.0,
        maximum=100.0,
        step=0.05,
        optional=True,
        place=11,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("interval", self.interval, minimum=1)
        require_finite("growth", self.growth, minimum=0.0, maximum=100.0)

    @property
    def content_free(self) -> bool:
        return True

    def note(self, steps: int) -> str | None:
        if self.interval == 1 and self.growth == 0:
            return "interval 1: every step is computed"
        return super().note(steps)

    def begin(self, schedule: Schedule, denoiser: ModelView) -> IntervalState:
        return IntervalState(schedule, self)


@dataclass
class IntervalState(PolicyState):
    """grown: by how much a chunk's interval has grown."""

    policy: Interval
    grown: dict[int, float] = field(default_factory=dict, init=False)

    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        return [self.settle(item.chunk.index, self.one(item)) for item in items]

    def one(self, item: ChunkInput) -> Decision:
        progress = self.progress(item.chunk.index)
        forced = self.policy.forced(item.step, self.schedule.steps, progress)
        if forced:
            return Decision("compute", forced)
        grown = self.grown.get(item.chunk.index, 0.0)
        if progress.consecutive < int(self.policy.interval + grown) - 1:
            return Decision("reuse", "interval")
        self.grown[item.chunk.index] = grown + self.policy.growth
        return Decision("compute", "interval")

    def finish(self, chunk: int) -> None:
        super().finish(chunk)
        self.grown.pop(chunk, None)
