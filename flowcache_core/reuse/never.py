"""No reuse: every step is computed (the uncached run all others are measured against)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..denoiser import ChunkInput, ModelView
from ..options import replaced
from ..schedule import Schedule
from .base import Decision, PolicyState, ReusePolicy


@dataclass(frozen=True)
class Never(ReusePolicy):
    """Compute everything."""

    name: ClassVar[str] = "never"

    warmup_steps: int = replaced(ReusePolicy, "warmup_steps", 1)

    @property
    def content_free(self) -> bool:
        return True

    def note(self, steps: int) -> str | None:
        return None

    def begin(self, schedule: Schedule, denoiser: ModelView) -> NeverState:
        return NeverState(schedule)


@dataclass
class NeverState(PolicyState):
    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        return [Decision("compute", "no reuse") for _ in items]
