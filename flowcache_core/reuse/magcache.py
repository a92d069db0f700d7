"""MagCache per chunk: skip while the known decay of the residual's magnitude, multiplied up, stays near one.

The curve is measured once per model and step count; given it, the decisions are a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ..denoiser import ChunkInput, Denoiser
from ..errors import require
from ..schedule import Schedule
from .base import Decision, PolicyState, ReusePolicy, require_threshold


@dataclass(frozen=True)
class MagCache(ReusePolicy):
    """Reuse while the summed error ``|1 - product of ratios|`` stays below ``threshold``.

    curve: mean ``|r_t| / |r_(t-1)|`` of the block-stack residual for every own step (the first is 1).
    """

    name: ClassVar[str] = "magcache"

    threshold: float = 0.12
    max_reuses: int | None = 4
    curve: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_threshold(self.threshold)

    def note(self, steps: int) -> str | None:
        if self.threshold == 0:
            return "threshold 0: every step is computed"
        return super().note(steps)

    def begin(self, schedule: Schedule, denoiser: Denoiser) -> MagCacheState:
        length = len(self.curve)
        require(length == schedule.steps, "curve", f"{length} ratios", f"one for each of {schedule.steps} steps")
        return MagCacheState(schedule, self)


@dataclass
class MagCacheState(PolicyState):
    policy: MagCache
    product: dict[int, float] = field(default_factory=dict, init=False)

    def overridden(self, chunk: int) -> None:
        super().overridden(chunk)
        self.product[chunk] = 1.0

    def finish(self, chunk: int) -> None:
        super().finish(chunk)
        self.product.pop(chunk, None)

    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        return [self.settle(item.chunk.index, self.one(item)) for item in items]

    def one(self, item: ChunkInput) -> Decision:
        progress = self.progress(item.chunk.index)
        forced = self.policy.forced(item.step, self.schedule.steps, progress)
        if not forced:
            product = self.product.get(item.chunk.index, 1.0) * self.policy.curve[item.step]
            progress.accumulated += abs(1 - product)
            if progress.accumulated < self.policy.threshold:
                self.product[item.chunk.index] = product
                return Decision("reuse", "within threshold", abs(1 - product), progress.accumulated)
        self.product[item.chunk.index] = 1.0
        return Decision("compute", forced or "threshold reached", None, progress.accumulated)
