"""TeaCache as a correct baseline for AR plans: one accumulator and one decision for all active chunks.

A chunk whose step is forced (first, warm-up, last, cap) is computed alone and keeps out of the common distance, so that
the only difference to the chunkwise policy is what the paper compares: one decision against one per chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..denoiser import ChunkInput, ModelView
from ..options import replaced
from ..schedule import Schedule
from .base import Decision, PolicyState
from .by_distance import ByDistance
from .distance import Distance, DistanceState, TimeDistance
from .read import OneRead


@dataclass(frozen=True)
class TeaCache(ByDistance):
    """TeaCache (arXiv 2411.19108) for AR plans: reuse in all active chunks while their pooled distance stays below."""

    name: ClassVar[str] = "teacache"

    distance: Distance = replaced(ByDistance, "distance", TimeDistance())

    def begin(self, schedule: Schedule, denoiser: ModelView) -> TeaCacheState:
        return TeaCacheState(schedule, self, self.distance.begin(schedule, denoiser))


@dataclass
class TeaCacheState(PolicyState):
    policy: TeaCache
    distance: DistanceState
    accumulated: float = 0.0

    def read_with(self, reader: OneRead) -> None:
        super().read_with(reader)
        self.distance.read_with(reader)

    def finish(self, chunk: int) -> None:
        super().finish(chunk)
        self.distance.finish(chunk)

    def overridden(self, chunk: int) -> None:
        super().overridden(chunk)
        self.accumulated = 0.0

    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        steps = self.schedule.steps
        changes = self.distance.measure(items)
        forced = [self.policy.forced(i.step, steps, self.progress(i.chunk.index)) for i in items]
        pooled = [change for change, why in zip(changes, forced, strict=True) if change is not None and why is None]
        distance = self.policy.distance.value(pooled) if pooled else None
        common = Decision("compute", "threshold reached")
        if distance is not None:
            self.accumulated += distance
            common = self.policy.verdict(distance, self.accumulated)
            self.accumulated = self.accumulated if common.reuses else 0.0
        else:
            self.accumulated = 0.0  # all are computed: what later chunks accumulate begins here
        return [
            self.settle(item.chunk.index, Decision("compute", why, None, self.accumulated) if why else common)
            for item, why in zip(items, forced, strict=True)
        ]
