"""Chunkwise adaptive reuse (Eq. 8): every chunk has its own accumulator and decides for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..denoiser import ChunkInput, ModelView
from ..schedule import Schedule
from .by_distance import ByDistance
from .distance import DistanceState
from .read import OneRead
from .thresholded import ThresholdedState


@dataclass(frozen=True)
class Chunkwise(ByDistance):
    """FlowCache's rule (arXiv 2602.10825, Eq. 8)."""

    name: ClassVar[str] = "chunkwise"

    inclusive: bool = True

    def begin(self, schedule: Schedule, denoiser: ModelView) -> ChunkwiseState:
        return ChunkwiseState(schedule, self, self.distance.begin(schedule, denoiser))


@dataclass
class ChunkwiseState(ThresholdedState):
    distance: DistanceState

    def read_with(self, reader: OneRead) -> None:
        super().read_with(reader)
        self.distance.read_with(reader)

    def finish(self, chunk: int) -> None:
        super().finish(chunk)
        self.distance.finish(chunk)

    def measure(self, items: Sequence[ChunkInput]) -> list[float | None]:
        value = self.policy.distance.value  # type: ignore[attr-defined]
        return [None if change is None else value([change]) for change in self.distance.measure(items)]
