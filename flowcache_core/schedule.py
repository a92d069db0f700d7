"""Noise levels of one chunk's steps: what the solver integrates over and what the model is told."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import require, require_count


@dataclass(frozen=True)
class Schedule:
    """``sigmas`` has N + 1 falling values (1 = noise, 0 = clean); ``timesteps`` the N values fed to the model."""

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]

    def __post_init__(self) -> None:
        require_count("schedule.steps", len(self.timesteps), minimum=1)
        require(len(self.sigmas) == len(self.timesteps) + 1, "schedule.sigmas", len(self.sigmas), "one more than timesteps")
        falling = all(a > b >= 0 for a, b in zip(self.sigmas, self.sigmas[1:], strict=False))
        require(falling, "schedule.sigmas", self.sigmas, "strictly falling values, none below 0")

    @property
    def steps(self) -> int:
        return len(self.timesteps)
