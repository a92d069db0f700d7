"""SkyReels-V2 diffusion forcing: every chunk starts ``ar_step`` ticks after the one before it (arXiv 2504.13074)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..errors import require, require_count
from ..options import option, replaced
from .base import MOST_FRAMES, Plan, offset_ticks, split_frames
from .settings import PlanSettings

NOT_STARTED, DONE = 999.0, 0.0


def staggered(
    frames: int, chunk_frames: int, steps: int, ar_step: int, prefix_frames: int = 0, base_frames: int | None = None
) -> Plan:
    """Chunk j starts ``ar_step`` ticks after chunk j - 1; 0 denoises all chunks together.

    An ``ar_step`` above ``steps`` leaves no gap: a chunk starts at the latest when the one before it is done.
    frames: latent frames, the prefix included. base_frames: the model's window in latent frames; a longer video slides
    through it, which only fits if chunks finish as fast as new ones start.
    Raises SettingError, with the smallest ``ar_step`` that fits, or naming the count that cannot work.
    """
    require_count("steps", steps, minimum=1)
    require_count("ar_step", ar_step, minimum=0)
    chunks, prefix_chunks = split_frames(frames, chunk_frames, prefix_frames)
    if base_frames is not None:
        require_count("base_frames", base_frames, minimum=chunk_frames)
        if frames > base_frames:
            smallest = -(-steps // (base_frames // chunk_frames))
            accepted = f"at least {smallest} ({steps} steps, {base_frames // chunk_frames} chunks in base_frames)"
            require(ar_step >= smallest, "ar_step", ar_step, accepted)
    ticks = offset_ticks(chunks, prefix_chunks, steps, min(ar_step, steps))
    return Plan("staggered", chunks, steps, ticks, prefix_chunks)


def timestep_rows(plan: Plan, timesteps: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """What the model is told at every tick: one row per tick, one timestep per chunk.

    timesteps: the schedule's, one per step. A chunk that has not started reads 999, one that is done (or prefix) 0.
    """
    require(len(timesteps) == plan.steps, "timesteps", len(timesteps), f"one for each of the plan's {plan.steps} steps")
    waiting = len(plan.chunks) - plan.prefix_chunks
    row = [DONE] * plan.prefix_chunks + [NOT_STARTED] * waiting
    rows: list[tuple[float, ...]] = []
    for tick in plan.ticks:
        for item in tick.steps:
            row[item.chunk] = timesteps[item.step]
        rows.append(tuple(row))
        for item in tick.steps:
            if item.step == plan.steps - 1:
                row[item.chunk] = DONE
    return tuple(rows)


@dataclass(frozen=True)
class VideoWindow:
    """Latent frames ``[first_frame, first_frame + frames)`` of a video; ``prefix_frames`` of them are known."""

    first_frame: int
    frames: int
    prefix_frames: int

    @property
    def end_frame(self) -> int:
        return self.first_frame + self.frames


def overlap_windows(frames: int, base_frames: int, overlap_frames: int, chunk_frames: int) -> tuple[VideoWindow, ...]:
    """Cut a video longer than the model's window into windows that begin with the end of the one before.

    All counts in latent frames. The last window may be short. Raises SettingError unless ``overlap_frames`` is a
    whole number of chunks that leaves room for new frames in ``base_frames``.
    """
    require_count("frames", frames, minimum=1, maximum=MOST_FRAMES)
    require_count("chunk_frames", chunk_frames, minimum=1)
    require_count("base_frames", base_frames, minimum=chunk_frames)
    windows = [VideoWindow(0, min(frames, base_frames), 0)]
    if frames <= base_frames:
        return tuple(windows)
    require_count("overlap_frames", overlap_frames, minimum=1, maximum=base_frames - 1)
    aligned = overlap_frames % chunk_frames == 0
    require(aligned, "overlap_frames", overlap_frames, f"a multiple of the {chunk_frames} latent frames of a chunk")
    while (finished := windows[-1].end_frame) < frames:
        first = finished - overlap_frames
        windows.append(VideoWindow(first, min(frames - first, base_frames), overlap_frames))
    return tuple(windows)


@dataclass(frozen=True)
class Staggered(PlanSettings):
    """Diffusion forcing: a chunk starts ``ar_step`` ticks after the one before it (SkyReels-V2, arXiv 2504.13074)."""

    name: ClassVar[str] = "staggered"
    title: ClassVar[str] = "diffusion forcing"
    solver: ClassVar[str] = "unipc"
    clean_pass: ClassVar[bool] = False
    whole_window: ClassVar[bool] = True

    chunk_frames: int = replaced(PlanSettings, "chunk_frames", 5)
    ar_step: int = option(
        5, "Steps that a chunk starts after the one before it; 0 denoises all chunks together.", minimum=0, maximum=1000
    )

    def plan(self, frames: int, steps: int, prefix_frames: int = 0) -> Plan:
        return staggered(frames, self.chunk_frames, steps, self.ar_step, prefix_frames)

    @classmethod
    def abreast(cls, chunk_frames: int, steps: int, chunks: int = 4) -> Staggered:
        return cls(chunk_frames, max(1, steps // chunks))
