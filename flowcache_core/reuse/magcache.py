"""MagCache per chunk: skip while the known decay of the residual's magnitude, multiplied up, stays near one.

The curve is measured once per model and step count; given it, the decisions are a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from ..denoiser import ChunkInput, ModelView
from ..errors import require
from ..options import option, replaced
from ..schedule import Schedule
from .base import Decision, PolicyState
from .thresholded import Thresholded


@dataclass(frozen=True)
class MagCache(Thresholded):
    """MagCache (arXiv 2506.09045): reuse while the summed error ``|1 - product of ratios|`` stays below ``threshold``.

    curve: mean ``|r_t| / |r_(t-1)|`` of the block-stack residual for every own step (the first is 1).
    """

    name: ClassVar[str] = "magcache"

    threshold: float = replaced(Thresholded, "threshold", 0.12)
    max_reuses: int | None = replaced(Thresholded, "max_reuses", 4)
    curve: tuple[float, ...] = option(
        (),
        "Only for the policy magcache: for every step of a chunk the ratio of the residual's magnitude to the step "
        "before it, such as 1, 0.99, 0.97.",
        label="magnitude_ratios",
        optional=True,
        place=12,
        advanced=True,
    )

    @property
    def content_free(self) -> bool:
        return True

    def check(self, steps: int) -> None:
        super().check(steps)
        length = len(self.curve)
        require(length == steps, "curve", f"{length} ratios", f"one for each of {steps} steps")

    def begin(self, schedule: Schedule, denoiser: ModelView) -> MagCacheState:
        self.check(schedule.steps)
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
            if self.policy.within(progress.accumulated):
                self.product[item.chunk.index] = product
                return Decision("reuse", "within threshold", abs(1 - product), progress.accumulated)
        self.product[item.chunk.index] = 1.0
        return Decision("compute", forced or "threshold reached", None, progress.accumulated)
