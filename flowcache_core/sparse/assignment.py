"""One candidate per head at the least error under a budget of density: exact, by dynamic programming.

The second half of Error-guided Budgeted Calibration (HASTE, arXiv 2605.14513).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import fsum

import numpy as np
from numpy.typing import NDArray

from ..errors import require

_UNIT = 2.0**44
"""Densities and errors are added as whole numbers of this fraction of the largest total: equal sums are equal."""
_SLACK = 5e-10
"""By how much the mean density may exceed the budget: budgets and densities are decimal fractions."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Assignment:
    """``choice[head]``: the candidate of every head. error: sum over heads; density: weighted mean over heads."""

    choice: tuple[int, ...]
    error: float
    density: float


def assign(
    error: Sequence[Sequence[float]] | Numbers,
    density: Sequence[Sequence[float]] | Numbers,
    budget: float,
    weight: Sequence[float] | Numbers | None = None,
) -> Assignment:
    """Choose k per head: min sum of ``error[h][k]``, weighted mean of ``density[h][k]`` at most ``budget``.

    Of equally good choices one of the least density. SettingError (field "budget") when no choice fits.

    Head by head, the states (density so far, error so far) that nothing else beats are kept. A state is dropped too
    when its error and the least that the heads to come must add, by the continuous relaxation, exceed those of a
    known choice; so that hundreds of heads take a second, and the result is still the optimum.
    """
    errors, densities = np.asarray(error, dtype=np.float64), np.asarray(density, dtype=np.float64)
    weights = np.ones(len(errors)) if weight is None else np.asarray(weight, dtype=np.float64)
    _check(errors, densities, weights)
    heads = len(errors)
    share = densities * (weights / weights.sum())[:, None]
    least = float(share.min(1).sum())
    require(budget >= least - _SLACK, "budget", budget, f"a mean density of at least {least:.4g}, the least here")

    room = round((budget + _SLACK) * _UNIT)
    costs = np.rint(share * _UNIT).astype(np.int64)
    scale = _UNIT / (float(errors.max(1).sum()) or 1.0)
    losses = np.rint(errors * scale).astype(np.int64)
    bounds = _Relaxation.of_tails(costs, losses)
    best = _greedy(costs, losses, room)

    used, lost = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    steps = []
    for head in range(heads):
        parent, choice = np.divmod(np.arange(len(used) * costs.shape[1]), costs.shape[1])
        new_used, new_lost = used[parent] + costs[head][choice], lost[parent] + losses[head][choice]
        left = room - new_used
        promising = np.flatnonzero(new_lost + bounds[head + 1](left) <= best + heads)  # heads: rounding of the bound
        order = promising[np.lexsort((new_lost[promising], new_used[promising]))]
        falling = np.minimum.accumulate(new_lost[order])
        front = order[np.r_[True, falling[1:] < falling[:-1]]]  # less error the denser it is, strictly
        used, lost = new_used[front], new_lost[front]
        steps.append((parent[front].astype(np.int32), choice[front].astype(np.int16)))

    state, chosen = len(used) - 1, []  # the last state of a front has the least error
    for parent, choice in reversed(steps):
        chosen.append(int(choice[state]))
        state = int(parent[state])
    picked = tuple(reversed(chosen))
    index = np.arange(heads), np.array(picked)
    return Assignment(picked, fsum(errors[index]), fsum(share[index]))


def least_error(error: Numbers, density: Numbers, budget: float) -> float:
    """What :func:`assign` cannot come below with equal weights: the error where a head may mix two candidates. Infinite
    where nothing fits."""
    scale = float(error.max(1).sum()) or 1.0
    costs, losses = np.rint(density * _UNIT).astype(np.int64), np.rint(error / scale * _UNIT).astype(np.int64)
    room = np.array(round((budget + _SLACK) * len(error) * _UNIT))
    # Every number was rounded by half a unit at most.
    return (float(_Relaxation.of_all(costs, losses)(room)) / _UNIT - 1e-9) * scale


@dataclass(frozen=True)
class _Relaxation:
    """Least error of some heads as a function of the density they share, when a head may mix two candidates: the
    heads' lower convex hulls, their steps taken by falling gain per density.
    """

    density: NDArray[np.int64]
    error: NDArray[np.int64]

    @classmethod
    def of_all(cls, costs: NDArray[np.int64], losses: NDArray[np.int64]) -> _Relaxation:
        """For the heads from 0 on alone."""
        hulls = [_lower_hull(cost, loss) for cost, loss in zip(costs, losses, strict=True)]
        steps = np.concatenate([np.diff(hull, axis=0) for hull in hulls])
        start = np.sum([hull[0] for hull in hulls], 0)
        order = np.argsort(steps[:, 1] / steps[:, 0], kind="stable")
        points = np.r_[start[None], start + np.cumsum(steps[order], axis=0)]
        return cls(points[:, 0], points[:, 1])

    @classmethod
    def of_tails(cls, costs: NDArray[np.int64], losses: NDArray[np.int64]) -> list[_Relaxation]:
        """For the heads from 0 on, from 1 on, ... and for none."""
        tails = [cls(np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64))]
        slopes, steps = np.zeros(0), np.zeros((0, 2), dtype=np.int64)
        start = np.zeros(2, dtype=np.int64)
        for cost, loss in zip(costs[::-1], losses[::-1], strict=True):
            hull = _lower_hull(cost, loss)
            own = np.diff(hull, axis=0)
            slopes = np.r_[slopes, own[:, 1] / own[:, 0]]
            order = np.argsort(slopes, kind="stable")
            slopes, steps = slopes[order], np.r_[steps, own][order]
            start = start + hull[0]
            points = np.r_[start[None], start + np.cumsum(steps, axis=0)]
            tails.append(cls(points[:, 0], points[:, 1]))
        return tails[::-1]

    def __call__(self, density: NDArray[np.int64]) -> Numbers:
        """A lower bound of the error within ``density``; infinite where even the least does not fit."""
        bound = np.interp(density, self.density, self.error)
        return np.where(density < self.density[0], np.inf, bound)


def _greedy(costs: NDArray[np.int64], losses: NDArray[np.int64], room: int) -> int:
    """The error of a choice that exists: the relaxation's steps, those left out that do not fit whole."""
    hulls = [_lower_hull(cost, loss) for cost, loss in zip(costs, losses, strict=True)]
    steps = [(dy / dx, head, i, dx, dy) for head, hull in enumerate(hulls) for i, (dx, dy) in _steps(hull)]
    left, error = room - sum(int(hull[0, 0]) for hull in hulls), sum(int(hull[0, 1]) for hull in hulls)
    taken = [0] * len(hulls)
    for _, head, i, dx, dy in sorted(steps):
        if dx <= left and taken[head] == i:
            left, error, taken[head] = left - dx, error + dy, i + 1
    return error


def _steps(hull: NDArray[np.int64]) -> Iterable[tuple[int, list[int]]]:
    return enumerate(np.diff(hull, axis=0).tolist())


def _lower_hull(cost: NDArray[np.int64], loss: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64 ``[n, 2]``: the candidates that no mixture of others beats, by rising cost and falling loss."""
    hull: list[tuple[int, int]] = []
    for x, y in sorted(zip(cost.tolist(), loss.tolist(), strict=True)):
        if hull and y >= hull[-1][1]:
            continue
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append((x, y))
    return np.array(hull, dtype=np.int64)


def _check(errors: Numbers, densities: Numbers, weights: Numbers) -> None:
    ok = errors.ndim == 2 and errors.size > 0 and bool(np.isfinite(errors).all() and (errors >= 0).all())
    require(ok, "error", errors.shape, "[heads][candidates] of numbers >= 0")
    ok = densities.shape == errors.shape and bool(((densities >= 0) & (densities <= 1)).all())
    require(ok, "density", densities.shape, f"{errors.shape} of numbers from 0 to 1")
    ok = weights.shape == errors.shape[:1] and bool(np.isfinite(weights).all() and (weights > 0).all())
    require(ok, "weight", weights.shape, f"{len(errors)} numbers > 0")
