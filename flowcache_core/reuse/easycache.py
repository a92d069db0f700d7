"""EasyCache per chunk: how much the velocity should have changed, from how much the latents have.

The ratio of the two is measured between the last two computed steps and assumed to hold until the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..denoiser import ChunkInput, ModelView
from ..options import replaced
from ..schedule import Schedule
from .base import Reason
from .distance import TINY
from .thresholded import Thresholded, ThresholdedState


@dataclass(frozen=True)
class EasyCache(Thresholded):
    """EasyCache (arXiv 2507.02860): reuse while the predicted relative change of the velocity, summed, stays below."""

    name: ClassVar[str] = "easycache"

    threshold: float = replaced(Thresholded, "threshold", 0.05)

    def begin(self, schedule: Schedule, denoiser: ModelView) -> EasyCacheState:
        return EasyCacheState(schedule, self)


@dataclass
class Track:
    """One chunk: last step's latents, the last computed pair, and the ratio of changes between the last two pairs."""

    before: Tensor
    latents: Tensor | None = None
    velocity: Tensor | None = None
    ratio: Tensor | None = None


@dataclass
class EasyCacheState(ThresholdedState):
    tracks: dict[int, Track] = field(default_factory=dict, init=False)
    unmeasured: ClassVar[Reason] = "no ratio yet"

    def finish(self, chunk: int) -> None:
        super().finish(chunk)
        self.tracks.pop(chunk, None)

    def measure(self, items: Sequence[ChunkInput]) -> list[float | None]:
        """ratio * mean|x - x before| / mean|v last| of every chunk that has a ratio; one device sync."""
        values: list[Tensor] = []
        known: list[bool] = []
        for item in items:
            track = self.tracks.get(item.chunk.index)
            if track is None:
                track = self.tracks[item.chunk.index] = Track(item.latents)
            known.append(track.ratio is not None)
            if track.ratio is not None and track.velocity is not None:
                moved = (item.latents - track.before).float().abs().mean()
                values.append(track.ratio * moved / (track.velocity.abs().mean() + TINY))
            track.before = item.latents
        numbers = iter(self.reader.read(torch.stack(values)) if values else [])
        return [next(numbers) if seen else None for seen in known]

    def observe(self, item: ChunkInput, velocity: Tensor) -> None:
        track, velocity = self.tracks[item.chunk.index], velocity[0].float()
        if track.latents is not None and track.velocity is not None:
            moved = (item.latents - track.latents).float().abs().mean()
            track.ratio = (velocity - track.velocity).abs().mean() / (moved + TINY)
        track.latents, track.velocity = item.latents, velocity
