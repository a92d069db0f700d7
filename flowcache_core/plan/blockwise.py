"""One chunk after the other, as Self Forcing and Causal Forcing sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import require_count
from .base import Plan, offset_ticks, split_frames
from .settings import PlanSettings


def blockwise(frames: int, chunk_frames: int, steps: int, prefix_frames: int = 0) -> Plan:
    """All steps of a chunk at consecutive ticks, then the next chunk.

    frames: latent frames, the prefix included. Raises SettingError naming the count that cannot work.
    Source: Self Forcing (arXiv 2506.08009), Algorithm 2.
    """
    require_count("steps", steps, minimum=1)
    chunks, prefix_chunks = split_frames(frames, chunk_frames, prefix_frames)
    return Plan("blockwise", chunks, steps, offset_ticks(chunks, prefix_chunks, steps, steps), prefix_chunks)


@dataclass(frozen=True)
class Blockwise(PlanSettings):
    """One chunk after the other (Self Forcing, arXiv 2506.08009; Causal Forcing)."""

    name: ClassVar[str] = "blockwise"
    title: ClassVar[str] = "blockwise"
    solver: ClassVar[str] = "renoise"
    clean_pass: ClassVar[bool] = True

    def plan(self, frames: int, steps: int, prefix_frames: int = 0) -> Plan:
        return blockwise(frames, self.chunk_frames, steps, prefix_frames)
