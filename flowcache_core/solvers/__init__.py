"""Solvers by name: how a chunk's latents follow the velocity from one noise level to the next."""

from __future__ import annotations

from .base import Solver
from .euler import Euler
from .renoise import ReNoise
from .unipc import UniPC

SOLVERS: dict[str, type[Solver]] = {solver.name: solver for solver in (Euler, UniPC, ReNoise)}
