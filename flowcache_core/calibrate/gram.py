"""Inner products of a chunk's velocities over its steps: all that a schedule search needs to know of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..denoiser import ChunkInput, ModelView
from ..reuse.base import Decision, PolicyState, ReusePolicy
from ..schedule import Schedule


@dataclass(frozen=True)
class Watch(ReusePolicy):
    """Computes every step and keeps ``<v_i, v_j> / values`` of the guided velocities of every chunk and batch row.

    first, later: filled as chunks finish, ``[steps, steps]`` each, float64; the chunk that begins a video apart from
    the others, as it bends more.
    """

    name: ClassVar[str] = "watch"

    warmup_steps: int = 1
    first: list[Tensor] = field(default_factory=list, compare=False)
    later: list[Tensor] = field(default_factory=list, compare=False)

    def note(self, steps: int) -> str | None:
        return None

    def begin(self, schedule: Schedule, denoiser: ModelView) -> WatchState:
        return WatchState(schedule, self, denoiser)


@dataclass
class WatchState(PolicyState):
    policy: Watch
    denoiser: ModelView
    seen: dict[int, list[Tensor]] = field(default_factory=dict, init=False)

    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        return [Decision("compute", "no reuse") for _ in items]

    def observe(self, item: ChunkInput, velocity: Tensor) -> None:
        rows = self.seen.setdefault(item.chunk.index, [])
        rows.append(self.denoiser.guide(velocity, item).flatten(1).double())
        if len(rows) == self.schedule.steps:
            stacked = torch.stack(rows, 1)  # [B, steps, values]
            kept = self.policy.later if item.chunk.index else self.policy.first
            kept.extend(torch.einsum("bid,bjd->bij", stacked, stacked) / stacked.shape[2])
            del self.seen[item.chunk.index]


def mean_gram(grams: Sequence[Tensor]) -> Tensor:
    """Mean over chunks and videos, ``[steps, steps]``."""
    return torch.stack(list(grams)).mean(0)
