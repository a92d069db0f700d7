"""Runs of one model over prompt-seed pairs: what calibration and benchmarks have in common."""

from __future__ import annotations

import hashlib
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..denoiser import Denoiser
from ..engine import EngineSettings, generate
from ..report.events import Event
from ..report.refusing import refusing
from ..report.video import pixels
from ..solvers.base import Solver
from ..solvers.euler import Euler

Pair = tuple[str, int]
"""Prompt and seed of one video."""


@dataclass(frozen=True)
class Setup:
    """What runs that are compared have in common. name: of the plan."""

    name: str = "blockwise"
    chunks: int = 4
    steps: int = 50
    guidance: float = 3.0
    solver: Solver = Euler()


class Specimen(ABC):
    """One model with its weights, as far as calibration needs to know it. Pairs of one batch run together.

    plans: names of the plans it can be sampled with, its own first. default: the setup that is calibrated when nothing
    else is asked for. prompts: what to calibrate on when the user gives none. sha256: of the weights, "" for none.
    decodes: whether :meth:`decode` works; without it there are recordings, but no probe runs. batch: the most pairs
    that may run together.
    """

    name: ClassVar[str]
    plans: ClassVar[tuple[str, ...]]
    default: Setup
    prompts: tuple[str, ...]
    sha256: str = ""
    decodes: bool = True
    batch: ClassVar[int] = 64

    @property
    @abstractmethod
    def transformer(self) -> nn.Module:
        """With its weights."""

    @abstractmethod
    def settings(self, setup: Setup, **changes: Any) -> EngineSettings:
        """The engine's settings; ``changes``: other fields of them. SettingError for a setup that cannot run."""

    @abstractmethod
    def denoiser(self, prompts: Sequence[str], setup: Setup) -> Denoiser:
        """For a batch with one prompt each."""

    @abstractmethod
    def noise(self, chunks: int, seed: int) -> Tensor:
        """Standard normal latents ``[1, C, F, h, w]`` for so many chunks."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Videos ``[B, 3, T, H, W]`` in -1..1."""

    @property
    def prompts_sha256(self) -> str:
        """Of what the model is given for :attr:`prompts`, whatever these are called."""
        return hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()

    def shift(self, setup: Setup) -> float | None:
        """Shift of the noise levels, None where they follow another rule."""
        return None


def generated(
    specimen: Specimen,
    setup: Setup,
    batch: Sequence[Pair],
    *,
    denoiser: Denoiser | None = None,
    observe: Callable[[Event], None] = lambda event: None,
    **changes: Any,
) -> Tensor:
    """Latents ``[len(batch), C, F, h, w]`` of one engine run. denoiser: another than the specimen's own.

    NotFiniteError at the first step whose values are not finite.
    """
    if len(batch) > specimen.batch:
        rest = {"denoiser": denoiser, "observe": observe, **changes}
        parts = [batch[i : i + specimen.batch] for i in range(0, len(batch), specimen.batch)]
        return torch.cat([generated(specimen, setup, part, **rest) for part in parts])
    settings = specimen.settings(setup, **changes)
    noise = torch.cat([specimen.noise(setup.chunks, seed) for _, seed in batch])
    denoiser = denoiser or specimen.denoiser([prompt for prompt, _ in batch], setup)
    return generate(denoiser, settings, noise, observe=refusing(observe))


@torch.no_grad()
def videos(specimen: Specimen, latents: Tensor) -> list[Tensor]:
    """Decoded videos, each ``[T, H, W, 3]`` uint8; four at a time, which costs little more than one."""
    clips = torch.cat([specimen.decode(part) for part in latents.split(4)]).movedim(1, 4)
    return list(pixels(clips))


@dataclass(frozen=True)
class Spread:
    """Median, mean and 10th percentile."""

    median: float
    mean: float
    p10: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = sorted(values)
        low = statistics.quantiles(found, n=10, method="inclusive")[0] if len(found) > 1 else found[0]
        return cls(statistics.median(found), statistics.fmean(found), low)


def paired(prompts: Sequence[str], first_seed: int, count: int) -> tuple[Pair, ...]:
    """``count`` prompt-seed pairs; every prompt comes with seeds of its own."""
    return tuple((prompts[i % len(prompts)], first_seed + i) for i in range(count))
