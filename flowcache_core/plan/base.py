"""A plan says which (chunk, step) pairs run at each tick: pure data, no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from ..errors import SettingError, require, require_count


@dataclass(frozen=True)
class Chunk:
    """A run of latent frames that is denoised together: ``[first_frame, first_frame + frames)`` of the plan's window."""

    index: int
    first_frame: int
    frames: int

    @property
    def end_frame(self) -> int:
        return self.first_frame + self.frames


@dataclass(frozen=True)
class ChunkStep:
    """One denoising step of one chunk; ``step`` counts the chunk's own steps from 0."""

    chunk: int
    step: int


@dataclass(frozen=True)
class Tick:
    """Chunk steps that run after one another, in ascending chunk order, at the same point of the schedule."""

    index: int
    steps: tuple[ChunkStep, ...]


@dataclass(frozen=True)
class Plan:
    """The whole run of one window.

    ``prefix_chunks`` leading chunks are given clean: they never appear in a tick.
    """

    name: str
    chunks: tuple[Chunk, ...]
    steps: int
    ticks: tuple[Tick, ...]
    prefix_chunks: int = 0

    def __post_init__(self) -> None:
        """Refuse a plan that skips, repeats or reorders a chunk's steps (SettingError naming the tick)."""
        require_count("plan.steps", self.steps, minimum=1)
        require_count("plan.chunks", len(self.chunks), minimum=1)
        require_count("plan.prefix_chunks", self.prefix_chunks, minimum=0, maximum=len(self.chunks) - 1)
        done = {chunk.index: 0 for chunk in self.chunks[self.prefix_chunks :]}
        for tick in self.ticks:
            order = [item.chunk for item in tick.steps]
            require(order == sorted(set(order)), f"plan.ticks[{tick.index}]", order, "ascending chunks, each at most once")
            for item in tick.steps:
                if done.get(item.chunk) != item.step:
                    raise SettingError(f"plan.ticks[{tick.index}]", item, f"step {done.get(item.chunk)} of that chunk")
                done[item.chunk] += 1
        require(all(n == self.steps for n in done.values()), "plan.ticks", done, f"{self.steps} steps for every chunk")

    @property
    def frames(self) -> int:
        """Latent frames of the window, prefix included."""
        return self.chunks[-1].end_frame

    @property
    def total_steps(self) -> int:
        """Chunk steps in the whole plan: what "100 %" of the progress bar means."""
        return sum(len(tick.steps) for tick in self.ticks)

    @cached_property
    def first_tick(self) -> dict[int, int]:
        """Tick at which each chunk takes its first step (prefix chunks are absent)."""
        return {item.chunk: tick.index for tick in self.ticks for item in tick.steps if item.step == 0}

    @cached_property
    def max_active(self) -> int:
        """The most chunks that are begun and not finished at the same tick (B_active in chunks)."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for tick in self.ticks:
            for item in tick.steps:
                first.setdefault(item.chunk, tick.index)
                last[item.chunk] = tick.index
        return max(sum(first[c] <= tick.index <= last[c] for c in first) for tick in self.ticks)


def split_frames(frames: int, chunk_frames: int, prefix_frames: int = 0) -> tuple[tuple[Chunk, ...], int]:
    """Cut ``frames`` latent frames into chunks; the prefix gets chunks of its own.

    Returns the chunks and how many of them are prefix. The last prefix chunk and the last chunk may be short.
    """
    require_count("chunk_frames", chunk_frames, minimum=1)
    require_count("frames", frames, minimum=1)
    require_count("prefix_frames", prefix_frames, minimum=0, maximum=frames - 1)
    chunks: list[Chunk] = []
    position = 0
    for end in (prefix_frames, frames):
        while position < end:
            length = min(chunk_frames, end - position)
            chunks.append(Chunk(len(chunks), position, length))
            position += length
    prefix_chunks = -(-prefix_frames // chunk_frames)
    return tuple(chunks), prefix_chunks
