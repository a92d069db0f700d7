"""MAGI-1: a window of chunks slides over the video, one chunk entering at every stage (arXiv 2505.13211)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import require, require_count
from ..options import option, replaced
from .base import MOST_FRAMES, Plan, offset_ticks, split_frames
from .settings import PlanSettings


def window(
    frames: int,
    chunk_frames: int,
    steps: int,
    window_chunks: int = 4,
    prefix_frames: int = 0,
) -> Plan:
    """At most ``window_chunks`` chunks at once, one entering every ``steps // window_chunks`` ticks.

    frames: latent frames, the prefix included. Chunks begin at multiples of ``chunk_frames`` whatever is given; what a
    prefix has beyond whole chunks is held in the first one denoised, as MAGI-1 does.
    Raises SettingError when the window does not divide the steps, or naming the count that cannot work.
    """
    require_count("steps", steps, minimum=1)
    require_count("window_chunks", window_chunks, minimum=1)
    require(steps % window_chunks == 0, "steps", steps, f"a multiple of window_chunks ({window_chunks})")
    require_count("chunk_frames", chunk_frames, minimum=1)
    require_count("frames", frames, minimum=1, maximum=MOST_FRAMES)
    require_count("prefix_frames", prefix_frames, minimum=0, maximum=frames - 1)
    held = prefix_frames % chunk_frames
    chunks, prefix_chunks = split_frames(frames, chunk_frames, prefix_frames - held)
    ticks = offset_ticks(chunks, prefix_chunks, steps, steps // window_chunks)
    return Plan("window", chunks, steps, ticks, prefix_chunks, held)


@dataclass(frozen=True)
class SlidingWindow(PlanSettings):
    """At most ``window_chunks`` chunks in work, one entering as one leaves (MAGI-1, arXiv 2505.13211)."""

    name: ClassVar[str] = "window"
    title: ClassVar[str] = "sliding window"
    solver: ClassVar[str] = "euler"
    clean_pass: ClassVar[bool] = True

    chunk_frames: int = replaced(PlanSettings, "chunk_frames", 6)
    window_chunks: int = option(
        4,
        "The most chunks in work at once; must divide the number of steps. 4 for MAGI-1.",
        minimum=1,
        maximum=64,
    )

    def plan(self, frames: int, steps: int, prefix_frames: int = 0) -> Plan:
        return window(frames, self.chunk_frames, steps, self.window_chunks, prefix_frames)

    @classmethod
    def abreast(cls, chunk_frames: int, steps: int, chunks: int = 4) -> SlidingWindow:
        return cls(chunk_frames, chunks)
