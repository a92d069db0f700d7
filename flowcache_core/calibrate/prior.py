"""How far errors are carried on, as found once on the bundled models: what stands in for probe runs of one's own.

An error that the solver makes at noise level sigma grows or fades on its way to the video. In the bundled models its
size follows ``exp(level + slope * sigma)`` well, whatever the list of computed steps. The slope is larger in the chunk
that begins a video: there the early steps decide what is in the picture. What the first chunk got wrong is wrong in all
later ones; of what a later chunk got wrong, each chunk after it takes over a part (CARRY).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .search import Floats


@dataclass(frozen=True)
class Reach:
    """Amplitude ``exp(level + slope * sigma)`` in the decoded video (0..1) of an error in the latents."""

    level: float
    slope: float

    def weights(self, sigmas: Sequence[float]) -> Floats:
        """By step, ``[steps]``, for the N + 1 noise levels of N steps."""
        return np.exp(self.level + self.slope * np.asarray(sigmas[:-1], dtype=np.float64))


# From ``python -m benchmarks.reach`` (benchmarks/results/reach.json). FIRST: both bundled models, whose own slopes are
# 2.5 (mini) and 2.75 (mini MAGI). LATER, CARRY: the mini model; the mini MAGI's later chunks are not measured yet.
FIRST = Reach(level=-2.51, slope=2.5)
LATER = Reach(level=-2.65, slope=0.75)
CARRY = 0.9
# What a gap is worth once it is corrected counts alone: with the forecast's own error beside it the errors of the lists
# that were tried scatter by 3.5 dB around the prediction instead of 2.5 (first chunks; later ones 2.0 and 1.9).
FORECAST_SHARE = 0.0


def video_error(first: float, later: float, chunks: int) -> float:
    """Mean square error of a video whose first chunk has the error ``first`` and each later one its own ``later``."""
    carried = sum(1 + CARRY * (chunk - 1) for chunk in range(1, chunks))
    return first + later * carried / chunks


def decibels(error: float) -> float:
    return -10 * math.log10(max(error, 1e-10))
