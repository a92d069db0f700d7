"""What policies with a threshold have in common: something is measured at every step, added up, and compared."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..denoiser import ChunkInput
from ..errors import require_finite
from ..options import option
from .base import Decision, PolicyState, Reason, ReusePolicy


@dataclass(frozen=True)
class Thresholded(ReusePolicy):
    """Reuse while what has accumulated since the last computed step stays within ``threshold`` (Eq. 8's epsilon).

    inclusive: at most the threshold (the paper's <=) or below it (its implementations' <). 0 never reuses.
    """

    threshold: float = option(
        0.1,
        "Reuse while the distance accumulated since the last computed step stays within this. Higher is faster and "
        "less exact; 0 computes every step.",
        minimum=0.0,
        maximum=100.0,
        step=0.001,
        place=1,
    )
    inclusive: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite("threshold", self.threshold, minimum=0.0)

    def note(self, steps: int) -> str | None:
        if self.threshold == 0:
            return "threshold 0: every step is computed"
        return super().note(steps)

    def within(self, accumulated: float) -> bool:
        """The test of Eq. 8. A distance that is not finite is no reason to reuse: a computed step says more."""
        if self.threshold == 0 or not math.isfinite(accumulated):
            return False
        return accumulated <= self.threshold if self.inclusive else accumulated < self.threshold

    def verdict(self, distance: float, accumulated: float) -> Decision:
        """The decision of the threshold, with the numbers behind it."""
        if self.within(accumulated):
            return Decision("reuse", "within threshold", distance, accumulated)
        return Decision("compute", "threshold reached", distance, accumulated)


@dataclass
class ThresholdedState(PolicyState):
    """One accumulator per chunk. A subclass measures, forced steps too: the next one needs them."""

    policy: Thresholded
    unmeasured: ClassVar[Reason] = "first step"

    @abstractmethod
    def measure(self, items: Sequence[ChunkInput]) -> list[float | None]:
        """How much each chunk has changed since its last step; None where it cannot say. At most one device sync."""

    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        decisions = []
        for item, change in zip(items, self.measure(items), strict=True):
            progress = self.progress(item.chunk.index)
            forced = self.policy.forced(item.step, self.schedule.steps, progress)
            if forced or change is None:
                decision = Decision("compute", forced or self.unmeasured, change, progress.accumulated)
            else:
                progress.accumulated += change
                decision = self.policy.verdict(change, progress.accumulated)
            decisions.append(self.settle(item.chunk.index, decision))
        return decisions
