"""Forecasts: the velocity a reused step would have, extrapolated from the chunk's last computed ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..denoiser import ChunkInput, Denoiser
from ..errors import require_count, require_finite
from ..fields import require_types
from ..options import option, replaced
from .quantity import Computed, Quantity


def lagrange(nodes: Sequence[float | Tensor], at: float) -> list[Any]:
    """Weights of the polynomial through values at ``nodes`` evaluated at ``at``: numbers, or maps where nodes are."""
    weights = []
    for i, node in enumerate(nodes):
        weight: Any = 1.0
        for j, other in enumerate(nodes):
            if j != i:
                weight *= (at - other) / (node - other)
        weights.append(weight)
    return weights


def combine(weights: Sequence[Any], velocities: Sequence[Tensor]) -> Tensor:
    """The weighted sum, newest first."""
    total = velocities[-1] * weights[-1]
    for weight, velocity in zip(weights[:-1], velocities[:-1], strict=True):
        total = total + weight * velocity
    return total


@dataclass(frozen=True)
class Forecast(Quantity):
    """The polynomial of ``order`` in sigma through the last ``order + 1`` computed velocities, on their true spacing.

    Exact for velocities of that order in sigma. With fewer computed steps the order falls accordingly. damping: how
    much of the extrapolated change is taken, 1 all of it, 0 none (plain velocity reuse). correction: order of the
    polynomial through the computed velocities on both sides of a gap, with which the gap is gone through again as soon
    as the step after it is computed; 0 leaves the forecasts as they are. It costs no forward: the model saw forecast
    latents, what it answered then improves how they came about (as a multistep corrector does, without evaluating
    again).
    """

    name: ClassVar[str] = "forecast"

    order: int = option(
        1,
        "Only for forecast and taylor: order of the polynomial through the last computed velocities.",
        label="forecast_order",
        minimum=1,
        maximum=3,
        optional=True,
        place=14,
        advanced=True,
    )
    damping: float = option(
        1.0,
        "Only for forecast: how much of the extrapolated change is taken, from 0 (the last velocity as it is) to 1.",
        label="forecast_damping",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
        optional=True,
        place=15,
        advanced=True,
    )
    correction: int = option(
        2,
        "Only for forecast: order of the polynomial with which a gap is gone through again once the step after it is "
        "computed; 0 leaves the forecasts as they were.",
        label="forecast_correction",
        minimum=0,
        maximum=4,
        optional=True,
        place=16,
        advanced=True,
    )

    def __post_init__(self) -> None:
        require_types(self)
        require_count("order", self.order, minimum=1, maximum=3)
        require_finite("damping", self.damping, minimum=0.0, maximum=1.0)
        require_count("correction", self.correction, minimum=0, maximum=4)

    @property
    def keep(self) -> int:  # type: ignore[override]
        return max(self.order + 1, self.correction)

    @property
    def corrects(self) -> bool:
        return self.correction > 0

    def between(self, nodes: Sequence[tuple[float | Tensor, Tensor]], sigma: float) -> Tensor:
        nodes = nodes[-(self.correction + 1) :]
        weights = lagrange([at for at, _ in nodes], sigma)
        return combine(weights, [velocity for _, velocity in nodes])

    def velocity(
        self, history: tuple[Computed, ...], item: ChunkInput, sigma_next: float, denoiser: Denoiser
    ) -> Tensor:
        history = history[-(self.order + 1) :]
        weights = lagrange([computed.sigma for computed in history], item.sigma)
        if self.damping < 1:
            weights = [self.damping * weight for weight in weights]
            weights[-1] += 1 - self.damping
        return combine(weights, [computed.velocity for computed in history])


@dataclass(frozen=True)
class Taylor(Quantity):
    """TaylorSeer's rule on the velocity: finite differences per step index, extrapolated as a Taylor series.

    Derivatives are the published recursion F_(i+1) = (F_i now - F_i before) / distance in steps.
    """

    name: ClassVar[str] = "taylor"
    by_token: ClassVar[bool] = False  # it counts in steps of the chunk

    order: int = replaced(Forecast, "order", 1)

    def __post_init__(self) -> None:
        require_count("order", self.order, minimum=1, maximum=3)

    @property
    def keep(self) -> int:  # type: ignore[override]
        return self.order + 1

    def velocity(
        self, history: tuple[Computed, ...], item: ChunkInput, sigma_next: float, denoiser: Denoiser
    ) -> Tensor:
        steps = [computed.item.step for computed in history]
        level = [computed.velocity for computed in history]
        total, factor, ahead = level[-1], 1.0, item.step - steps[-1]
        for order in range(1, len(history)):
            gaps = [steps[i + order] - steps[i + order - 1] for i in range(len(level) - 1)]
            level = [(b - a) / gap for a, b, gap in zip(level, level[1:], gaps, strict=False)]
            factor *= ahead / order
            total = total + factor * level[-1]
        return total


@dataclass(frozen=True)
class Offset(Quantity):
    """EasyCache's cached quantity: velocity minus latents of the last computed step, added to the latents of now."""

    name: ClassVar[str] = "offset"

    def velocity(
        self, history: tuple[Computed, ...], item: ChunkInput, sigma_next: float, denoiser: Denoiser
    ) -> Tensor:
        last = history[-1]
        device = item.latents.device  # what is kept goes there: the other way the host would wait for it
        return last.velocity.to(device) + (item.latents - last.item.latents.to(device))
