"""Euler: one straight line along the velocity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..noise import NoiseSource
from ..schedule import Schedule
from .base import Solver, SolverState


@dataclass(frozen=True)
class Euler(Solver):
    """``x + velocity * (sigma_next - sigma)``: first order, what MAGI-1 uses."""

    name: ClassVar[str] = "euler"

    def begin(self, schedule: Schedule, chunk: int, noise: NoiseSource) -> SolverState:
        return EulerState(schedule, chunk, noise)


class EulerState(SolverState):
    def snapshot(self) -> SolverState:
        return self.shallow()

    def advance(self, x: Tensor, velocity: Tensor, step: int) -> Tensor:
        sigma, sigma_next = self.schedule.sigmas[step : step + 2]
        return x + velocity * (sigma_next - sigma)
