"""Schedules from what is measured on a few videos: one for the chunk that begins a video, one for all later ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..reuse.base import ReusePolicy
from ..reuse.forecast import Forecast
from ..reuse.schedule import StaticSchedule, spread
from .gram import Watch, mean_gram
from .search import Floats, Found, best_schedules
from .sensitivity import reach

Video = Callable[[ReusePolicy], Tensor]
"""The decoded videos of a run with this policy and repeated velocities, ``[B, ...]``."""
RATIOS = (1.0, 2.0, 3.0, 4.0)


@dataclass(frozen=True)
class Split:
    """Computed steps of the first chunk and of each later one."""

    first: int
    later: int


@dataclass(frozen=True)
class Tables:
    """Count -> the schedule with the least forecast error."""

    first: dict[int, Found]
    later: dict[int, Found]

    def policy(self, split: Split) -> StaticSchedule:
        first, later = self.first[split.first].computed, self.later[split.later].computed
        return StaticSchedule(computed=later, first=first, together=True)


def measured_reach(video: Video, watch: Watch, base: Tensor, sigmas: Sequence[float], probes: int = 8) -> list[Floats]:
    """How far an error at each step reaches, when made in the first chunk and when made in all later ones.

    watch, base: of the run with every step computed.
    """
    every = tuple(range(len(sigmas) - 1))
    first, later = mean_gram(watch.first).numpy(), mean_gram(watch.later).numpy()
    return [
        reach(first, sigmas, lambda own: video(StaticSchedule(computed=every, first=own)), base, probes),
        reach(later, sigmas, lambda own: video(StaticSchedule(computed=own, first=every)), base, probes),
    ]


def searched(watch: Watch, sigmas: Sequence[float], reaches: Sequence[Floats], forecast: Forecast) -> Tables:
    """The schedules that follow from what ``watch`` saw."""
    first, later = (
        best_schedules(mean_gram(grams).numpy(), sigmas, forecast.order, weights, correction=forecast.correction)
        for grams, weights in zip((watch.first, watch.later), reaches, strict=True)
    )
    return Tables(first, later)


def calibrated(video: Video, sigmas: Sequence[float], forecast: Forecast, probes: int = 8) -> Tables:
    """Measure and search: one run with every step computed and two per probe."""
    watch = Watch()
    base = video(watch)
    return searched(watch, sigmas, measured_reach(video, watch, base, sigmas, probes), forecast)


def even(split: Split, steps: int) -> StaticSchedule:
    """Steps spread evenly, in the first chunk and in the later ones."""
    first, later = spread(split.first, steps, 1), spread(split.later, steps, 1)
    return StaticSchedule(computed=later, first=first, together=True)


def split(total: int, chunks: int, steps: int, ratio: float) -> Split:
    """``total`` computed steps, shared out so that the first chunk takes about ``ratio`` times as many as a later one.

    Never more than ``steps`` and, where ``total`` allows, at least two in every chunk.
    """
    later = max(2, round(total / (chunks - 1 + ratio)))
    later = max(later, -(-(total - steps) // (chunks - 1)))  # what the first chunk has no room for
    return Split(max(2, total - (chunks - 1) * later), later)


def splits(total: int, chunks: int, steps: int) -> list[Split]:
    """The different ways to share out ``total`` computed steps at :data:`RATIOS`."""
    return list(dict.fromkeys(split(total, chunks, steps, ratio) for ratio in RATIOS))
