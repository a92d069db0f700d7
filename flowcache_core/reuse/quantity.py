"""What a reused step takes from the computed ones, as a velocity per branch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..denoiser import ChunkInput, Denoiser
from ..errors import SettingError


@dataclass(frozen=True)
class Computed:
    """A computed step as a later one may reuse it.

    velocity ``[branches, B, ...]``; increment ``[B, ...]`` = latents after minus before the step; residual of the block
    stack when the quantity asks for it.
    """

    item: ChunkInput
    velocity: Tensor
    increment: Tensor
    residual: Tensor | None = None

    def to(self, device: str | None) -> Computed:
        """Every tensor of it on ``device``; None leaves them where they are."""
        if device is None:
            return self
        item = replace(self.item, latents=self.item.latents.to(device))
        residual = None if self.residual is None else self.residual.to(device)
        return Computed(item, self.velocity.to(device), self.increment.to(device), residual)


@dataclass(frozen=True)
class Quantity(ABC):
    """Pure function from a chunk's last ``keep`` computed steps (a tuple, oldest first) to this step's velocity.

    The steps may be kept on another device than the run's; the engine moves the velocity to where it is needed.
    """

    name: ClassVar[str]
    keep: ClassVar[int] = 1
    needs_residual: ClassVar[bool] = False

    @property
    def corrects(self) -> bool:
        """Whether reused steps are gone through again (:meth:`between`) as soon as the step after them is computed."""
        return False

    def between(self, nodes: Sequence[tuple[float, Tensor]], sigma: float) -> Tensor:
        """Velocity at ``sigma`` between the last two of the computed ``nodes`` (sigma, velocity), oldest first."""
        raise NotImplementedError

    @abstractmethod
    def velocity(
        self, history: tuple[Computed, ...], item: ChunkInput, sigma_next: float, denoiser: Denoiser
    ) -> Tensor:
        """Velocities ``[branches, B, ...]`` for a step from ``item.sigma`` to ``sigma_next``."""


@dataclass(frozen=True)
class Velocity(Quantity):
    """The last computed velocity; the solver multiplies it by the current step's own dt."""

    name: ClassVar[str] = "velocity"

    def velocity(
        self, history: tuple[Computed, ...], item: ChunkInput, sigma_next: float, denoiser: Denoiser
    ) -> Tensor:
        return history[-1].velocity


@dataclass(frozen=True)
class Increment(Quantity):
    """The last computed latent increment, added again without rescaling (the MAGI-1 implementation).

    Expressed as the velocity that gives this increment over the current dt, so that every solver can take it.
    """

    name: ClassVar[str] = "increment"

    def velocity(
        self, history: tuple[Computed, ...], item: ChunkInput, sigma_next: float, denoiser: Denoiser
    ) -> Tensor:
        last = history[-1]
        constant = last.increment / (sigma_next - item.sigma)
        return constant.expand(last.velocity.shape[0], *constant.shape)


@dataclass(frozen=True)
class Residual(Quantity):
    """The last computed residual of the block stack; embedding and head still run (the SkyReels-V2 implementation)."""

    name: ClassVar[str] = "residual"
    needs_residual: ClassVar[bool] = True

    def velocity(
        self, history: tuple[Computed, ...], item: ChunkInput, sigma_next: float, denoiser: Denoiser
    ) -> Tensor:
        last = history[-1]
        if last.residual is None:
            raise SettingError("reused quantity", self.name, "a denoiser that returns the block-stack residual")
        residual = last.residual.to(item.latents.device)
        return denoiser.from_residual(item, residual)
