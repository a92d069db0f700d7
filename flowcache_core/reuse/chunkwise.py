"""Chunkwise adaptive reuse (Eq. 8): every chunk has its own accumulator and decides for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..denoiser import ChunkInput, Denoiser
from ..schedule import Schedule
from .base import Decision, PolicyState, ReusePolicy, require_threshold, verdict, within
from .distance import Distance, DistanceState, LatentDistance


@dataclass(frozen=True)
class Chunkwise(ReusePolicy):
    """Reuse while the distance accumulated since the last computed step stays within ``threshold`` (epsilon).

    inclusive: the paper's <= (True) or its implementations' < (False).
    """

    name: ClassVar[str] = "chunkwise"

    threshold: float = 0.1
    distance: Distance = LatentDistance()
    inclusive: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_threshold(self.threshold)

    def note(self, steps: int) -> str | None:
        if self.threshold == 0:
            return "threshold 0: every step is computed"
        return super().note(steps)

    def begin(self, schedule: Schedule, denoiser: Denoiser) -> ChunkwiseState:
        return ChunkwiseState(schedule, self, self.distance.begin(schedule, denoiser))


@dataclass
class ChunkwiseState(PolicyState):
    policy: Chunkwise
    distance: DistanceState

    def finish(self, chunk: int) -> None:
        super().finish(chunk)
        self.distance.finish(chunk)

    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        changes = self.distance.measure(items)
        decisions = []
        for item, change in zip(items, changes, strict=True):
            progress = self.progress(item.chunk.index)
            distance = None if change is None else self.policy.distance.value([change])
            forced = self.policy.forced(item.step, self.schedule.steps, progress)
            if forced or distance is None:
                decision = Decision("compute", forced or "first step", distance, progress.accumulated)
            else:
                progress.accumulated += distance
                reuse = within(progress.accumulated, self.policy.threshold, self.policy.inclusive)
                decision = verdict(reuse, distance, progress.accumulated)
            decisions.append(self.settle(item.chunk.index, decision))
        return decisions
