"""MAGI-1: a window of chunks slides over the video, one chunk entering at every stage (arXiv 2505.13211)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import require, require_count
from .base import MOST_CHUNK_STEPS, MOST_FRAMES, Plan, offset_ticks, split_frames


@dataclass(frozen=True)
class Stage:
    """Chunks ``[first_chunk, end_chunk)`` move together through one group of steps each.

    groups: each chunk's step group, oldest chunk first; group g holds the steps ``g * p`` to ``(g + 1) * p - 1`` where
    p is ``steps // window_chunks``, the ticks of a stage. Tick t belongs to stage ``t // p``.
    """

    index: int
    first_chunk: int
    end_chunk: int
    groups: tuple[int, ...]


def stages(chunks: int, window_chunks: int = 4, prefix_chunks: int = 0) -> tuple[Stage, ...]:
    """The stages of a video of ``chunks`` chunks, of which ``prefix_chunks`` are given clean."""
    require_count("chunks", chunks, minimum=1, maximum=MOST_FRAMES)
    require_count("window_chunks", window_chunks, minimum=1, maximum=MOST_CHUNK_STEPS // chunks)
    require_count("prefix_chunks", prefix_chunks, minimum=0, maximum=chunks - 1)
    table: list[Stage] = []
    for newest in range(prefix_chunks, chunks + window_chunks - 1):
        first = max(prefix_chunks, newest - window_chunks + 1)
        end = min(chunks, newest + 1)
        groups = tuple(newest - chunk for chunk in range(first, end))
        table.append(Stage(len(table), first, end, groups))
    return tuple(table)


def window(
    frames: int,
    chunk_frames: int,
    steps: int,
    window_chunks: int = 4,
    prefix_frames: int = 0,
    *,
    hold_prefix: bool = False,
) -> Plan:
    """At most ``window_chunks`` chunks at once, one entering every ``steps // window_chunks`` ticks.

    frames: latent frames, the prefix included. hold_prefix: what MAGI-1 does with a prefix of no whole chunks: chunks
    begin at multiples of ``chunk_frames`` all the same, and the rest of the prefix is held in the first one denoised.
    Raises SettingError when the window does not divide the steps, or naming the count that cannot work.
    """
    require_count("steps", steps, minimum=1)
    require_count("window_chunks", window_chunks, minimum=1)
    require(steps % window_chunks == 0, "steps", steps, f"a multiple of window_chunks ({window_chunks})")
    held = 0
    require(isinstance(hold_prefix, bool), "hold_prefix", hold_prefix, "true or false")
    if hold_prefix:
        require_count("frames", frames, minimum=1, maximum=MOST_FRAMES)
        require_count("chunk_frames", chunk_frames, minimum=1)
        require_count("prefix_frames", prefix_frames, minimum=0, maximum=frames - 1)
        held = prefix_frames % chunk_frames
    chunks, prefix_chunks = split_frames(frames, chunk_frames, prefix_frames - held)
    ticks = offset_ticks(chunks, prefix_chunks, steps, steps // window_chunks)
    return Plan("window", chunks, steps, ticks, prefix_chunks, held)
