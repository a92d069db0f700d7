"""What the engine asks of a solver: the latents of one chunk after one step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import require
from ..noise import NoiseSource
from ..schedule import Schedule


class SolverState(ABC):
    """One chunk on its way down the schedule. Keeps copies only: nothing handed in or out is held or written to."""

    def __init__(self, schedule: Schedule, chunk: int, noise: NoiseSource) -> None:
        self.schedule, self.chunk, self.noise = schedule, chunk, noise
        self.next_step = 0

    def step(self, x: Tensor, velocity: Tensor, step: int) -> Tensor:
        """Latents at ``sigmas[step + 1]`` from latents ``x`` at ``sigmas[step]``.

        x: ``[B, C, f, H, W]`` (any shape works). velocity: noise minus clean, same shape. Computed in float32 at least,
        returned in the dtype of ``x``. Raises SettingError on a step out of order or another shape; the state is then
        as before.
        """
        due = f"step {self.next_step}" if self.next_step < self.schedule.steps else "no step: all are taken"
        require(step == self.next_step and step < self.schedule.steps, f"solver step of chunk {self.chunk}", step, due)
        require(velocity.shape == x.shape, "velocity", tuple(velocity.shape), f"the latents' shape {tuple(x.shape)}")
        dtype = torch.promote_types(x.dtype, torch.float32)
        result = self.advance(x.to(dtype), velocity.to(dtype), step)
        self.next_step += 1
        return result.to(x.dtype)

    def snapshot(self) -> SolverState:
        """This state as it is now, untouched by later steps of either: a corrected gap begins from it again.

        Schedule and noise are shared. The copy is deep, so that a solver may write to what it keeps in place; one that
        only ever binds new objects can do with :meth:`shallow`.
        """
        shared = {id(self.schedule): self.schedule, id(self.noise): self.noise}
        return deepcopy(self, shared)

    def shallow(self) -> SolverState:
        """A snapshot for solvers that write to nothing they keep."""
        return copy(self)

    @abstractmethod
    def advance(self, x: Tensor, velocity: Tensor, step: int) -> Tensor:
        """The formula. Must return a tensor of its own, and copy what it keeps of ``x`` and ``velocity``."""


@dataclass(frozen=True)
class Solver(ABC):
    """Settings of an integration rule; its state is made per chunk by :meth:`begin`."""

    name: ClassVar[str]

    @abstractmethod
    def begin(self, schedule: Schedule, chunk: int, noise: NoiseSource) -> SolverState:
        """A fresh state for one chunk. ``noise`` is drawn from by solvers that re-noise."""
