"""UniPC of order 2 (arXiv 2302.04867) on the clean prediction of a flow model, what SkyReels-V2 uses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..noise import NoiseSource
from ..schedule import Schedule
from .base import Solver, SolverState


@dataclass(frozen=True)
class UniPC(Solver):
    """Predictor and corrector of order 2, variant ``B(h) = e^h - 1`` ("bh2"), lower order at both ends."""

    name: ClassVar[str] = "unipc"

    def begin(self, schedule: Schedule, chunk: int, noise: NoiseSource) -> SolverState:
        return UniPCState(schedule, chunk, noise)


def half_log_snr(sigma: float) -> float:
    """``lambda = log((1 - sigma) / sigma)``: minus infinity for pure noise, infinity for clean latents."""
    if sigma <= 0:
        return math.inf
    return math.log1p(-sigma) - math.log(sigma) if sigma < 1 else -math.inf


class UniPCState(SolverState):
    """Remembers the last two clean predictions and the (corrected) latents the last step started from."""

    def __init__(self, schedule: Schedule, chunk: int, noise: NoiseSource) -> None:
        super().__init__(schedule, chunk, noise)
        self.lambdas = [half_log_snr(sigma) for sigma in schedule.sigmas]
        self.cleans: list[Tensor] = []  # predictions at the steps before, newest last
        self.start: Tensor | None = None

    def snapshot(self) -> SolverState:
        return self.shallow()

    def advance(self, x: Tensor, velocity: Tensor, step: int) -> Tensor:
        clean = x - self.schedule.sigmas[step] * velocity
        # The caller may write into x later, so the uncorrected first sample is kept as a copy.
        start = x.clone() if self.start is None else self.correct(self.start, clean, step)
        result = self.predict(start, clean, step)
        self.start, self.cleans = start, [*self.cleans[-1:], clean]
        return result

    def correct(self, start: Tensor, clean: Tensor, step: int) -> Tensor:
        """Latents at ``step`` again, now that the prediction ``clean`` made there is known (UniC)."""
        decay, gain = self.linear(step)
        newest = self.cleans[-1]
        change = clean - newest
        base = decay * start + gain * newest
        if len(self.cleans) == 1:
            return base + gain * 0.5 * change
        # Two conditions on two weights: w0 + w1 = b1, ratio * w0 + w1 = b2. Solved by hand so that a start at pure
        # noise (an infinite first interval, ratio = -inf) gives the finite limit.
        hh = self.lambdas[step - 1] - self.lambdas[step]
        phi = math.expm1(hh)
        b1 = (phi / hh - 1) / phi
        b2 = 2 * ((phi / hh - 1) / hh - 0.5) / phi
        ratio = self.ratio(step)
        w0 = (b1 - b2) / (1 - ratio)
        w1 = b1 - w0
        return base + gain * (w0 / ratio * (self.cleans[-2] - newest) + w1 * change)

    def predict(self, start: Tensor, clean: Tensor, step: int) -> Tensor:
        """Latents at ``step + 1`` (UniP); the first and the last step are of order 1."""
        decay, gain = self.linear(step + 1)
        result = decay * start + gain * clean
        if not self.cleans or step == self.schedule.steps - 1:
            return result
        return result + gain * 0.5 / self.ratio(step + 1) * (self.cleans[-1] - clean)

    def linear(self, step: int) -> tuple[float, float]:
        """Weights of latents and clean prediction on the way to ``step``, exact for a constant prediction."""
        sigma, sigma_next = self.schedule.sigmas[step - 1 : step + 1]
        return sigma_next / sigma, -(1 - sigma_next) * math.expm1(self.lambdas[step - 1] - self.lambdas[step])

    def ratio(self, step: int) -> float:
        """Where the prediction two intervals back lies, in units of the interval that ends at ``step`` (negative)."""
        before, last, now = self.lambdas[step - 2 : step + 1]
        return (before - last) / (now - last)
