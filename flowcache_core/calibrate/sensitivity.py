"""How far an error made at one step reaches: the flow forgets early ones and keeps late ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from .search import Floats, gap_error

Run = Callable[[tuple[int, ...]], Tensor]
"""Result of a run that computes exactly these own steps and repeats the last velocity at the others: decoded video, as
the decoder is blind to much of what latents differ in."""


def probe_steps(steps: int, probes: int) -> tuple[int, ...]:
    """About ``probes`` steps to try, spread over all that may be reused (neither the first nor the last)."""
    spread = np.linspace(1, steps - 2, min(probes, steps - 2))
    return tuple(sorted({int(step) for step in spread.round()}))


def reach(gram: Floats, sigmas: Sequence[float], run: Run, base: Tensor, probes: int = 16) -> Floats:
    """Final error over error made, for every step: ``[steps]``, interpolated between the probed ones.

    run: see :data:`Run`. base: result of the uncached run, ``[B, ...]`` with a row per video. One run per probe.
    """
    steps = len(gram)
    tried = probe_steps(steps, probes)
    ratios = []
    for step in tried:
        computed = tuple(own for own in range(steps) if own != step)
        errors = (run(computed) - base).double().square().flatten(1).mean(1)
        made = gap_error(gram, sigmas, range(step, step + 1), (step - 1,))
        # The geometric mean over videos: a few that turn out another way would drown all others.
        ratios.append(errors.clamp_min(1e-16).log().mean().item() - math.log(max(made, 1e-16)))
    interpolated = np.interp(np.arange(steps), tried, np.array(ratios) / 2)
    return np.asarray(np.exp(interpolated), dtype=np.float64)
