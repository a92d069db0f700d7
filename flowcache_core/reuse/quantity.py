"""What a reused step takes from the computed ones, as a velocity per branch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..denoiser import ChunkInput, Denoiser
from ..errors import SettingError
from ..rows import Rows


@dataclass(frozen=True)
class Computed:
    """A computed step as a later one may reuse it.

    velocity ``[branches, B, ...]``; increment ``[B, ...]`` = latents after minus before the step; residual of the block
    stack when the quantity asks for it. levels: the noise level of every place ``[branches or 1, 1, 1, f, H, W]`` where
    its tokens are of different steps (:meth:`with_part`), None where all are of ``item``'s.
    """

    item: ChunkInput
    velocity: Tensor
    increment: Tensor
    residual: Tensor | None = None
    levels: Tensor | None = None

    @property
    def sigma(self) -> float | Tensor:
        return self.item.sigma if self.levels is None else self.levels

    def to(self, device: str | None) -> Computed:
        """Every tensor of it on ``device``; None leaves them where they are."""
        if device is None:
            return self
        item = replace(self.item, latents=self.item.latents.to(device))
        residual, levels = (None if one is None else one.to(device) for one in (self.residual, self.levels))
        return Computed(item, self.velocity.to(device), self.increment.to(device), residual, levels)

    def with_part(self, newer: Computed, part: Part) -> Computed:
        """This step with ``newer`` at the part's tokens; both on one device, to which the part has been moved."""
        residual = None
        if self.residual is not None and newer.residual is not None:
            residual = torch.where(part.tokens, newer.residual, self.residual)
        return Computed(
            replace(self.item, latents=torch.where(part.places, newer.item.latents, self.item.latents)),
            torch.where(part.velocities, newer.velocity, self.velocity),
            torch.where(part.places, newer.increment, self.increment),
            residual,
            torch.where(part.velocities, newer.sigma, self.sigma),
        )


@dataclass(frozen=True)
class Part:
    """Which of a chunk's values a partial step has computed, as masks that broadcast.

    places: of its latents ``[f, H, W]``. velocities: of the branches' ``[branches or 1, 1, 1, f, H, W]``. tokens: of
    the residual ``[branches * B or 1, tokens, 1]``.
    """

    places: Tensor
    velocities: Tensor
    tokens: Tensor

    @classmethod
    def of(cls, rows: Rows, repeated: frozenset[int], velocity: Tensor) -> Part:
        """velocity ``[branches, B, C, f, H, W]``; repeated: branches that were not run."""
        branches, videos = velocity.shape[:2]
        places = rows.pixels(velocity)
        velocities, tokens = places[None, None, None], rows.mask(velocity.device).flatten()[None, :, None]
        if rows.each:
            none = torch.zeros_like(places)
            own = [none if one is None else one.pixels(velocity) for one in rows.each]
            velocities = torch.stack(own)[:, None, None]
            flat = [torch.zeros_like(tokens) if one is None else _flat(one, tokens) for one in rows.each]
            tokens = torch.cat([one for one in flat for _ in range(videos)])
        if repeated:
            ran = [branch not in repeated for branch in range(branches)]
            velocities = torch.stack([velocities[0] & one for one in ran])
            tokens = torch.cat([tokens & one for one in ran for _ in range(videos)])
        return cls(places, velocities, tokens)

    def to(self, device: str | None) -> Part:
        if device is None:
            return self
        return Part(self.places.to(device), self.velocities.to(device), self.tokens.to(device))


def _flat(rows: Rows, like: Tensor) -> Tensor:
    return rows.mask(like.device).flatten()[None, :, None]


def history_with_part(history: Sequence[Computed], newer: Computed, part: Part) -> list[Computed]:
    """A chunk's last computed steps, oldest first, after a partial one: each token has its own last ones."""
    following = [*history[1:], newer]
    return [older.with_part(after, part) for older, after in zip(history, following, strict=True)]


@dataclass(frozen=True)
class Quantity(ABC):
    """Pure function from a chunk's last ``keep`` computed steps (a tuple, oldest first) to this step's velocity.

    The steps may be kept on another device than the run's; the engine moves the velocity to where it is needed.
    """

    name: ClassVar[str]
    keep: ClassVar[int] = 1
    needs_residual: ClassVar[bool] = False
    by_token: ClassVar[bool] = True
    """Whether the steps in the history may be of other steps in some tokens than in others (:class:`Part`)."""

    @property
    def corrects(self) -> bool:
        """Whether reused steps are gone through again (:meth:`between`) as soon as the step after them is computed."""
        return False

    def between(self, nodes: Sequence[tuple[float | Tensor, Tensor]], sigma: float) -> Tensor:
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
