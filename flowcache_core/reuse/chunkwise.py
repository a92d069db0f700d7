"""Chunkwise adaptive reuse (Eq. 8): every chunk has its own accumulator and decides for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..denoiser import ChunkInput, ModelView
from ..options import option
from ..schedule import Schedule
from .distance import DISTANCES, Distance, DistanceState, LatentDistance
from .thresholded import Thresholded, ThresholdedState


@dataclass(frozen=True)
class Chunkwise(Thresholded):
    """FlowCache's rule (arXiv 2602.10825, Eq. 8). distance: what is measured between two steps of a chunk."""

    name: ClassVar[str] = "chunkwise"

    inclusive: bool = True
    distance: Distance = option(
        LatentDistance(),
        "What is compared between two steps: the noisy latents, their patch embedding, or the time modulation "
        "(TeaCache's, the same for every video).",
        parts=DISTANCES,
        place=3,
    )

    @property
    def content_free(self) -> bool:
        return self.distance.content_free

    @property
    def reads_model(self) -> bool:  # type: ignore[override]
        return self.distance.reads_model

    def begin(self, schedule: Schedule, denoiser: ModelView) -> ChunkwiseState:
        return ChunkwiseState(schedule, self, self.distance.begin(schedule, denoiser))


@dataclass
class ChunkwiseState(ThresholdedState):
    distance: DistanceState

    def finish(self, chunk: int) -> None:
        super().finish(chunk)
        self.distance.finish(chunk)

    def measure(self, items: Sequence[ChunkInput]) -> list[float | None]:
        value = self.policy.distance.value  # type: ignore[attr-defined]
        return [None if change is None else value([change]) for change in self.distance.measure(items)]
