"""A policy that computes every step and keeps the inner products of the velocities it sees: how a run is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..denoiser import ChunkInput, ModelView
from ..errors import require
from ..options import replaced
from ..reuse.base import Decision, PolicyState, ReusePolicy
from ..schedule import Schedule
from .gram import Grams
from .sketch import Sketch


@dataclass(frozen=True)
class Record(ReusePolicy):
    """Computes every step and adds the guided velocities of every whole chunk to ``grams``.

    Works wherever policies do, whatever the plan, the denoiser and the sampler. Beside the run it holds 3.3 MB a chunk
    in work and video at 50 steps (:data:`.sketch.SIZE` fp32 values a step), on the run's own device, and reads them
    once per chunk, when it is done. Chunks that were begun and not finished are counted and left out.

        record = Record()
        generate(denoiser, EngineSettings(plan, schedule, policy=record), noise)
        record.grams.later.mean()  # [steps, steps]
    """

    name: ClassVar[str] = "record"

    warmup_steps: int = replaced(ReusePolicy, "warmup_steps", 1)
    grams: Grams = field(default_factory=Grams, compare=False)

    @property
    def content_free(self) -> bool:
        return True

    def note(self, steps: int) -> str | None:
        return None

    def begin(self, schedule: Schedule, denoiser: ModelView) -> RecordState:
        """SettingError when earlier runs into the same ``grams`` had other noise levels."""
        known = self.grams.sigmas
        fits = known is None or known == schedule.sigmas
        accepted = "the same steps and shift in every run of one recording"
        require(fits, "recording", f"{schedule.steps} steps with other noise levels", accepted)
        self.grams.sigmas = schedule.sigmas
        return RecordState(schedule, self.grams, denoiser)


@dataclass
class RecordState(PolicyState):
    grams: Grams
    denoiser: ModelView
    sketch: Sketch = field(default_factory=Sketch, init=False)
    seen: dict[int, list[Tensor]] = field(default_factory=dict, init=False)

    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        return [Decision("compute", "no reuse") for _ in items]

    def observe(self, item: ChunkInput, velocity: Tensor) -> None:
        guided = self.denoiser.guide(velocity, item).flatten(1)
        if item.step == 0:
            self.grams.begun += guided.shape[0]
            self.seen[item.chunk.index] = []
        self.seen[item.chunk.index].append(self.sketch(guided) / guided.shape[1] ** 0.5)

    def finish(self, chunk: int) -> None:
        super().finish(chunk)
        rows = self.seen.pop(chunk, [])
        if len(rows) == self.schedule.steps:
            sketched = torch.stack(rows, 1).cpu().double()  # [B, steps, values]
            self.grams.add(sketched @ sketched.mT, first=chunk == 0)
