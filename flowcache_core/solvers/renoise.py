"""Re-noising: predict the clean latents, then add fresh noise at the next level (few-step distilled models)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..noise import NoiseSource
from ..schedule import Schedule
from .base import Solver, SolverState


@dataclass(frozen=True)
class ReNoise(Solver):
    """``x0 = x - sigma * velocity``, then ``(1 - sigma_next) * x0 + sigma_next * noise``; x0 itself where that is 0.

    What Self Forcing (arXiv 2506.08009, Algorithm 2) and ComfyUI's autoregressive sampler do.
    """

    name: ClassVar[str] = "renoise"

    def begin(self, schedule: Schedule, chunk: int, noise: NoiseSource) -> SolverState:
        return ReNoiseState(schedule, chunk, noise)


class ReNoiseState(SolverState):
    def snapshot(self) -> SolverState:
        return self.shallow()

    def advance(self, x: Tensor, velocity: Tensor, step: int) -> Tensor:
        sigma, sigma_next = self.schedule.sigmas[step : step + 2]
        clean = x - sigma * velocity
        if sigma_next == 0:
            return clean
        return (1 - sigma_next) * clean + sigma_next * self.noise(self.chunk, step, clean)
