"""Which steps to compute: the schedule with the least forecast error for every number of computed steps, exactly.

A reused step takes a forecast that is linear in the last computed velocities (and, once corrected, in the next one), so
what a run of reused steps adds to the latents' error is a linear combination of velocities, and its size follows from
their inner products alone. A dynamic program over (last computed steps) then finds the best set for every count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..errors import require, require_count
from ..reuse.forecast import lagrange

Nodes = tuple[int, ...]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """The best schedule with ``len(computed)`` computed steps; error: expected mean square of the latents' error."""

    computed: tuple[int, ...]
    error: float


def gap_error(
    gram: Floats, sigmas: Sequence[float], reused: range, nodes: Nodes, weights: Floats | None = None
) -> float:
    """Mean square error that taking the ``reused`` steps' velocities from ``nodes`` adds to the latents.

    nodes: the computed steps that the polynomial goes through. weights: how strongly an error made at a step reaches
    the result, 1 for unchanged.
    """
    if not reused:
        return 0.0
    combination = np.zeros(len(gram))
    levels = [sigmas[node] for node in nodes]
    for step in reused:
        width = (sigmas[step + 1] - sigmas[step]) * (1.0 if weights is None else weights[step])
        combination[step] -= width
        combination[list(nodes)] += width * np.asarray(lagrange(levels, sigmas[step]))
    return max(0.0, float(combination @ gram @ combination))


def best_schedules(
    gram: Floats,
    sigmas: Sequence[float],
    order: int,
    weights: Floats | None = None,
    *,
    correction: int = 0,
    forecast_share: float = 1.0,
) -> dict[int, Found]:
    """The best schedule for every possible count of computed steps, by count.

    gram: ``[N, N]`` inner products of the uncached run's velocities (:func:`mean_gram`). sigmas: N + 1 noise levels.
    order: of the forecast (0 repeats the last velocity). The first and the last step are always computed, as the engine
    does. Errors of different gaps are taken as independent, so they add up. correction: of the forecast, as in
    :class:`..reuse.forecast.Forecast`; the error is then that of the corrected gap plus ``forecast_share`` of the
    forecast's, since the model answers to latents that the forecast made.
    """
    steps = len(gram)
    require_count("order", order, minimum=0, maximum=3)
    require_count("correction", correction, minimum=0, maximum=3)
    require(gram.shape == (steps, steps) and len(sigmas) == steps + 1, "gram", gram.shape, f"{len(sigmas) - 1} steps")
    depth = max(order + 1, correction)

    def cost(nodes: Nodes, end: int) -> float:
        reused = range(nodes[-1] + 1, end)
        total = forecast_share * gap_error(gram, sigmas, reused, nodes[-(order + 1) :], weights)
        if correction:
            total += gap_error(gram, sigmas, reused, (*nodes, end)[-(correction + 1) :], weights)
        return total

    # best[nodes][k]: least error of a schedule with k computed steps whose last ones are nodes; came: its predecessor
    start: Nodes = (0,)
    best: dict[Nodes, Floats] = {start: np.full(steps + 1, np.inf)}
    came: dict[Nodes, list[Nodes | None]] = {start: [None] * (steps + 1)}
    best[start][1] = 0.0
    for last in range(steps - 1):
        for nodes in [state for state in best if state[-1] == last]:
            for end in range(last + 1, steps):
                following = (*nodes, end)[-depth:]
                error = cost(nodes, end)
                if following not in best:
                    best[following] = np.full(steps + 1, np.inf)
                    came[following] = [None] * (steps + 1)
                total = best[nodes][:-1] + error
                for k in np.flatnonzero(total < best[following][1:]):
                    best[following][k + 1] = total[k]
                    came[following][k + 1] = nodes
    final = [state for state in best if state[-1] == steps - 1]
    found: dict[int, Found] = {}
    for count in range(1, steps + 1):
        state = min(final, key=lambda nodes: best[nodes][count], default=None)
        if state is None or not np.isfinite(best[state][count]):
            continue
        found[count] = Found(_trace(state, count, came), float(best[state][count]))
    return found


def error_of(
    gram: Floats,
    sigmas: Sequence[float],
    computed: Sequence[int],
    order: int,
    weights: Floats | None = None,
    *,
    correction: int = 0,
    forecast_share: float = 1.0,
) -> float:
    """What :func:`best_schedules` would say of this schedule: the sum over its gaps."""
    total = 0.0
    for i, (start, end) in enumerate(pairwise(computed)):
        reused = range(start + 1, end)
        if forecast_share:
            nodes = tuple(computed[max(0, i - order) : i + 1])
            total += forecast_share * gap_error(gram, sigmas, reused, nodes, weights)
        if correction:
            nodes = tuple(computed[max(0, i + 1 - correction) : i + 2])
            total += gap_error(gram, sigmas, reused, nodes, weights)
    return total


def _trace(state: Nodes, count: int, came: dict[Nodes, list[Nodes | None]]) -> tuple[int, ...]:
    computed: list[int] = []
    here: Nodes | None = state
    while here is not None:
        computed.append(here[-1])
        here, count = came[here][count], count - 1
    return tuple(reversed(computed))
