"""Shots of a video: where they begin, and how far apart their frames lie for the model."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import require, require_count
from .base import Chunk


@dataclass(frozen=True)
class Shots:
    """starts: chunks at which another shot begins, rising. offset: latent frames by which every shot after the first is
    moved on in the model's rotary positions (LongLive 2.0: 8), so that a cut is no motion.
    """

    starts: tuple[int, ...] = ()
    offset: int = 0

    def __post_init__(self) -> None:
        require_count("offset", self.offset, minimum=0)
        rising = list(self.starts) == sorted(set(self.starts)) and all(start > 0 for start in self.starts)
        require(rising, "shots", self.starts, "rising chunk numbers from 1 on")

    def first_frame(self, chunk: Chunk, before: int = 0) -> int:
        """Where the model sees the chunk's first frame. before: chunks of the video before the plan's chunk 0."""
        return chunk.first_frame + self.offset * sum(start <= before + chunk.index for start in self.starts)

    @property
    def added(self) -> int:
        """Frames by which the last position lies behind the video's own."""
        return self.offset * len(self.starts)
