"""How far a chunk has moved since its previous step: the three distances the paper and its implementations use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..denoiser import ChunkInput, ModelView
from ..fields import require_types
from ..options import option
from ..schedule import Schedule
from .read import OneRead

TINY = 1e-8


@dataclass(frozen=True)
class Change:
    """Relative L1 as its two parts, sum |now - before| and sum |before|, so that chunks can be pooled."""

    difference: float
    magnitude: float


@dataclass(frozen=True)
class Distance(ABC):
    """One way to measure change between consecutive steps.

    ``content_free`` ones need no device sync and no video; ``reads_model``: whether :meth:`begin` asks the denoiser.
    """

    name: ClassVar[str]
    content_free: ClassVar[bool] = False
    reads_model: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_types(self)

    @abstractmethod
    def begin(self, schedule: Schedule, denoiser: ModelView) -> DistanceState:
        """Fresh state for one run."""

    def value(self, changes: Sequence[Change]) -> float:
        """Relative L1 of the changes pooled (Eq. 4, 5)."""
        return sum(c.difference for c in changes) / (sum(c.magnitude for c in changes) + TINY)


class DistanceState(ABC):
    """What a distance remembers within a run."""

    @abstractmethod
    def measure(self, items: Sequence[ChunkInput]) -> list[Change | None]:
        """Change of each chunk since its previous step; None at its first. At most one device sync."""

    def read_with(self, reader: OneRead) -> None:  # noqa: B027 - a table reads nothing
        """Read values of the device through ``reader``."""

    def sums(self, items: Sequence[ChunkInput]) -> Sequence[Tensor | Change | None]:
        """The same without a sync: difference and magnitude ``[2]`` of each chunk where they were measured."""
        return self.measure(items)

    def finish(self, chunk: int) -> None:  # noqa: B027 - a table keeps nothing of a chunk
        """Drop what is kept of a finished chunk."""


@dataclass
class FeatureState(DistanceState):
    """Keeps each chunk's last feature tensor; the previous one is replaced at every step, computed or reused."""

    feature: Callable[[ChunkInput], Tensor]
    previous: dict[int, Tensor] = field(default_factory=dict)
    reader: OneRead = field(default_factory=OneRead)

    def read_with(self, reader: OneRead) -> None:
        self.reader = reader

    def measure(self, items: Sequence[ChunkInput]) -> list[Change | None]:
        sums = self.sums(items)
        known = [one for one in sums if one is not None]
        values = iter(self.reader.read(torch.cat(known)) if known else [])
        return [None if one is None else Change(next(values), next(values)) for one in sums]

    def sums(self, items: Sequence[ChunkInput]) -> list[Tensor | None]:
        result: list[Tensor | None] = []
        for item in items:
            now = self.feature(item).float()
            before = self.previous.get(item.chunk.index)
            parts = None if before is None else [(now - before).abs().sum(), before.abs().sum()]
            result.append(None if parts is None else torch.stack(parts))
            self.previous[item.chunk.index] = now
        return result

    def finish(self, chunk: int) -> None:
        self.previous.pop(chunk, None)


@dataclass(frozen=True)
class LatentDistance(Distance):
    """Relative L1 of the chunk's noisy latents (Eq. 5)."""

    name: ClassVar[str] = "latent"

    def begin(self, schedule: Schedule, denoiser: ModelView) -> DistanceState:
        return FeatureState(lambda item: item.latents)


@dataclass(frozen=True)
class PatchDistance(Distance):
    """Relative L1 of the patch embedding of the noisy latents (what the MAGI-1 implementation measures)."""

    name: ClassVar[str] = "patch"
    reads_model: ClassVar[bool] = True

    def begin(self, schedule: Schedule, denoiser: ModelView) -> DistanceState:
        return FeatureState(denoiser.patch_embedding)


@dataclass(frozen=True)
class TimeDistance(Distance):
    """Relative L1 of the time modulation through a polynomial (TeaCache; the SkyReels-V2 implementation).

    It depends on the timestep alone, so it is a table per own step, made once when the run starts.
    ``polynomial``: coefficients, highest power first; () for the plain relative L1.
    """

    name: ClassVar[str] = "time"
    content_free: ClassVar[bool] = True
    reads_model: ClassVar[bool] = True

    polynomial: tuple[float, ...] = option(
        (),
        "Only for the distance time: coefficients of the polynomial through which the distance goes, highest power "
        "first. Empty: the distance itself.",
        label="time_polynomial",
        optional=True,
        place=13,
        advanced=True,
    )

    def begin(self, schedule: Schedule, denoiser: ModelView) -> DistanceState:
        features = torch.stack([denoiser.time_modulation(t).float().flatten() for t in schedule.timesteps])
        differences = (features[1:] - features[:-1]).abs().mean(1)
        magnitudes = features[:-1].abs().mean(1)
        differences, magnitudes = torch.stack([differences, magnitudes]).tolist()
        table = [None, *(Change(d, m) for d, m in zip(differences, magnitudes, strict=True))]
        return TableState(tuple(table))

    def value(self, changes: Sequence[Change]) -> float:
        relative = super().value(changes)
        if not self.polynomial:
            return relative
        result = 0.0
        for coefficient in self.polynomial:
            result = result * relative + coefficient
        return result


@dataclass(frozen=True)
class TableState(DistanceState):
    """A distance known in advance, by own step."""

    table: tuple[Change | None, ...]

    def measure(self, items: Sequence[ChunkInput]) -> list[Change | None]:
        return [self.table[item.step] for item in items]


DISTANCES: dict[str, type[Distance]] = {d.name: d for d in (LatentDistance, PatchDistance, TimeDistance)}
