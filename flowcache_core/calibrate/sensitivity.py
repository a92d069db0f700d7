"""How far an error made at one step reaches: the flow forgets early ones and keeps late ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from .search import Floats, gap_error

Run = Callable[[tuple[int, ...]], Tensor]
"""Final latents of a run that computes exactly these own steps and repeats the last velocity at the others."""


def probe_steps(steps: int, probes: int) -> tuple[int, ...]:
    """About ``probes`` steps to try, spread over all that may be reused (neither the first nor the last)."""
    spread = np.linspace(1, steps - 2, min(probes, steps - 2))
    return tuple(sorted({int(step) for step in spread.round()}))


def reach(gram: Floats, sigmas: Sequence[float], run: Run, base: Tensor, probes: int = 16) -> Floats:
    """Final error over error made, for every step: ``[steps]``, interpolated between the probed ones.

    run: see :data:`Run`. base: final latents of the uncached run. One run per probe.
    """
    steps = len(gram)
    tried = probe_steps(steps, probes)
    ones = np.ones(steps)
    ratios = []
    for step in tried:
        computed = tuple(own for own in range(steps) if own != step)
        final = (run(computed) - base).double().square().mean().item()
        made = gap_error(gram, sigmas, (step - 1,), step + 1, ones)
        ratios.append(max(final, 1e-16) / max(made, 1e-16))
    interpolated = np.interp(np.arange(steps), tried, np.log(ratios) / 2)
    return np.asarray(np.exp(interpolated), dtype=np.float64)
