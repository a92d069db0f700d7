"""BaryCache's forecast: a barycentric extrapolation with the weights of Chebyshev nodes of the second kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..denoiser import ChunkInput, Denoiser
from ..errors import require_count
from ..fields import require_types
from ..options import option
from .forecast import combine
from .quantity import Computed, Quantity

LARGEST = 10.0
DECAY = {2: 1.0, 3: 0.95, 4: 0.70}  # published: exponent of the weights, by the number of anchors


def barycentric_weights(steps: Sequence[int], at: int) -> list[float]:
    """Weights of values at own ``steps``, oldest first, for a later step ``at``; they sum to 1.

    Alternating signs, halved at both ends, over the distance to ``at``; cut to ``LARGEST`` in size, drawn in by the
    published exponent, and divided by their sum.
    """
    if len(steps) == 1:
        return [1.0]
    decay, raw = DECAY[len(steps)], []
    for i, step in enumerate(steps):
        weight = (-1.0) ** i * (0.5 if i in (0, len(steps) - 1) else 1.0) / (at - step)
        weight = max(-LARGEST, min(LARGEST, weight))
        raw.append((1.0 if weight >= 0 else -1.0) * abs(weight) ** decay)
    total = sum(raw)
    return [weight / total for weight in raw]


@dataclass(frozen=True)
class Barycentric(Quantity):
    """Barycentric extrapolation of the last ``anchors`` computed velocities over step indices (BaryCache, ICITES 2026).

    Two anchors, the published default, give the straight line through them. The original forecasts the model's output
    of a step (its "stepwise" mode), which is the velocity here.
    """

    name: ClassVar[str] = "barycentric"
    by_token: ClassVar[bool] = False

    anchors: int = option(
        2,
        "Only for barycentric: how many of the last computed velocities are extrapolated.",
        minimum=2,
        maximum=4,
        optional=True,
        place=18,
        advanced=True,
    )

    def __post_init__(self) -> None:
        require_types(self)
        require_count("anchors", self.anchors, minimum=2, maximum=4)

    @property
    def keep(self) -> int:  # type: ignore[override]
        return self.anchors

    def velocity(
        self, history: tuple[Computed, ...], item: ChunkInput, sigma_next: float, denoiser: Denoiser
    ) -> Tensor:
        history = history[-self.anchors :]
        weights = barycentric_weights([computed.item.step for computed in history], item.step)
        return combine(weights, [computed.velocity for computed in history])
