"""Spectrum's forecast: Chebyshev polynomials fitted to everything a chunk has computed so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from ..denoiser import ChunkInput, Denoiser
from ..errors import require_count, require_finite
from ..fields import require_types
from ..options import option
from .forecast import combine, lagrange
from .quantity import Computed, Quantity


def chebyshev_weights(nodes: Sequence[float], at: float, order: int, ridge: float) -> list[float]:
    """Weights of values at ``nodes`` (in 0..1) in their ridge fit of Chebyshev polynomials up to ``order``, at ``at``.

    The fit is linear in the values, so the weights follow from where they stand alone.
    """
    design = np.polynomial.chebyshev.chebvander(2 * np.asarray(nodes, dtype=np.float64) - 1, order)
    there = np.polynomial.chebyshev.chebvander(np.array([2 * at - 1.0]), order)[0]
    inner = design.T @ design + ridge * np.eye(order + 1)
    return [float(weight) for weight in np.linalg.solve(inner, there) @ design.T]


@dataclass(frozen=True)
class Chebyshev(Quantity):
    """A ridge fit of Chebyshev polynomials through all computed velocities of a chunk (Spectrum, arXiv 2603.01623).

    Order 4 and a ridge of 0.1 as published; ``blend`` mixes it with the straight line through the last two, 1 is the
    fit alone (the released setting). The original counts in steps of a run of 50; here the variable is the noise
    level, which has the same range for every number of steps. A chunk keeps all its computed velocities.
    """

    name: ClassVar[str] = "chebyshev"
    by_token: ClassVar[bool] = False
    keep: ClassVar[int] = 100

    degree: int = option(
        4,
        "Only for chebyshev: the highest order of the fitted polynomials.",
        label="chebyshev_order",
        minimum=1,
        maximum=8,
        optional=True,
        place=19,
        advanced=True,
    )
    ridge: float = option(
        0.1,
        "Only for chebyshev: how strongly the fit is drawn towards small coefficients; 0 would fit noise.",
        label="chebyshev_ridge",
        minimum=0.0001,
        maximum=10.0,
        step=0.01,
        optional=True,
        place=20,
        advanced=True,
    )
    blend: float = option(
        1.0,
        "Only for chebyshev: share of the fit; the rest is the straight line through the last two computed velocities.",
        label="chebyshev_share",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
        optional=True,
        place=21,
        advanced=True,
    )

    def __post_init__(self) -> None:
        require_types(self)
        require_count("degree", self.degree, minimum=1, maximum=8)
        require_finite("ridge", self.ridge, minimum=0.0001, maximum=10.0)
        require_finite("blend", self.blend, minimum=0.0, maximum=1.0)

    def velocity(
        self, history: tuple[Computed, ...], item: ChunkInput, sigma_next: float, denoiser: Denoiser
    ) -> Tensor:
        nodes = [computed.item.sigma for computed in history]
        weights = [self.blend * weight for weight in chebyshev_weights(nodes, item.sigma, self.degree, self.ridge)]
        for i, line in enumerate(lagrange(nodes[-2:], item.sigma), start=max(0, len(nodes) - 2)):
            weights[i] += (1 - self.blend) * line
        return combine(weights, [computed.velocity for computed in history])
