"""Schedules from what is known of a model: one for the chunk that begins a video, one for all later ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..reuse.base import ReusePolicy
from ..reuse.forecast import Forecast
from ..reuse.schedule import StaticSchedule, spread
from .gram import Grams
from .record import Record
from .search import Floats, Found, best_schedules
from .sensitivity import reach

FORECAST = Forecast(1, correction=2)  # what lists that follow from a recording alone are for
FORECASTS = (FORECAST, Forecast(2, correction=3))
"""Those a full calibration decides between. The second bends with the velocities, and overshoots on some models."""
Video = Callable[[ReusePolicy], Tensor]
"""The decoded videos of a run with this policy and repeated velocities, ``[B, ...]``."""
RATIOS = (1.0, 2.0, 3.0, 4.0)


@dataclass(frozen=True)
class Split:
    """Computed steps of the first chunk and of each later one."""

    first: int
    later: int

    def total(self, chunks: int) -> int:
        return self.first + (chunks - 1) * self.later


@dataclass(frozen=True)
class Proposal:
    """Which steps are computed, and how the others follow from them."""

    policy: StaticSchedule
    forecast: Forecast = FORECAST

    @property
    def quantity(self) -> dict[str, Any]:
        """The forecast as presets hold it."""
        return {"name": self.forecast.name, "order": self.forecast.order, "correction": self.forecast.correction}


@dataclass(frozen=True)
class Tables:
    """Count -> the schedule with the least error of ``forecast``."""

    first: dict[int, Found]
    later: dict[int, Found]

    forecast: Forecast = FORECAST

    def proposal(self, split: Split) -> Proposal:
        return Proposal(self.policy(split), self.forecast)

    def policy(self, split: Split) -> StaticSchedule:
        first, later = self.first[split.first].computed, self.later[split.later].computed
        return StaticSchedule(computed=later, first=first, together=True)


def searched(
    grams: Grams, reaches: Sequence[Floats], forecast: Forecast = FORECAST, *, forecast_share: float = 1.0
) -> Tables:
    """The schedules that follow from a recording.

    reaches: of errors made in the first and in the later chunks.
    """
    first, later = (
        best_schedules(
            table,
            grams.levels,
            forecast.order,
            weights,
            correction=forecast.correction,
            forecast_share=forecast_share,
        )
        for table, weights in zip(grams.tables(), reaches, strict=True)
    )
    return Tables(first, later, forecast)


def measured_reach(video: Video, grams: Grams, base: Tensor, probes: int = 8) -> list[Floats]:
    """How far an error at each step reaches, when made in the first chunk and when made in all later ones.

    grams, base: of the run with every step computed.
    """
    sigmas = grams.levels
    every = tuple(range(len(sigmas) - 1))
    first, later = grams.tables()
    return [
        reach(first, sigmas, lambda own: video(StaticSchedule(computed=every, first=own)), base, probes),
        reach(later, sigmas, lambda own: video(StaticSchedule(computed=own, first=every)), base, probes),
    ]


def calibrated(video: Video, forecast: Forecast = FORECAST, probes: int = 8) -> Tables:
    """Measure and search: one run with every step computed and two per probe."""
    record = Record()
    base = video(record)
    return searched(record.grams, measured_reach(video, record.grams, base, probes), forecast)


def even(split: Split, steps: int) -> StaticSchedule:
    """Steps spread evenly, in the first chunk and in the later ones."""
    first, later = spread(split.first, steps, 1), spread(split.later, steps, 1)
    return StaticSchedule(computed=later, first=first, together=True)


def split(total: int, chunks: int, steps: int, ratio: float) -> Split:
    """``total`` computed steps, shared out so that the first chunk takes about ``ratio`` times as many as a later one.

    Never more than ``steps`` and, where ``total`` allows, at least two in every chunk.
    """
    if chunks == 1:
        return Split(total, total)
    later = max(2, round(total / (chunks - 1 + ratio)))
    later = max(later, -(-(total - steps) // (chunks - 1)))  # what the first chunk has no room for
    return Split(max(2, total - (chunks - 1) * later), later)


def splits(total: int, chunks: int, steps: int) -> list[Split]:
    """The different ways to share out ``total`` computed steps at :data:`RATIOS`."""
    return list(dict.fromkeys(split(total, chunks, steps, ratio) for ratio in RATIOS))
