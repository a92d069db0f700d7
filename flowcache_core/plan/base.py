"""A plan says which (chunk, step) pairs run at each tick: pure data, no tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from ..errors import Found, SettingError, require, require_count
from ..fields import require_types

# Latent frames of a plan: more than four hours at 24 frames per second.
MOST_FRAMES = 100_000
# Steps of all chunks together: a plan lists them all. 10,000 chunks of 64 steps have 640,000 and take 200 MB.
MOST_CHUNK_STEPS = 1_000_000


@dataclass(frozen=True)
class Chunk:
    """Latent frames ``[first_frame, first_frame + frames)`` of the plan's window, denoised together."""

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

    ``prefix_chunks`` leading chunks are given clean: they never appear in a tick. ``held_frames``: leading latent
    frames of the first chunk after them that are given clean too; they are put back after each of its steps.
    """

    name: str
    chunks: tuple[Chunk, ...]
    steps: int
    ticks: tuple[Tick, ...]
    prefix_chunks: int = 0
    held_frames: int = 0

    def __post_init__(self) -> None:
        """Refuse a plan that skips, repeats or reorders a chunk's steps (SettingError naming the tick)."""
        require_types(self)
        require_count("plan.steps", self.steps, minimum=1)
        require_count("plan.chunks", len(self.chunks), minimum=1)
        require_count("plan.prefix_chunks", self.prefix_chunks, minimum=0, maximum=len(self.chunks) - 1)
        position = 0
        for expected, chunk in enumerate(self.chunks):
            whole = all(type(n) is int for n in (chunk.index, chunk.first_frame, chunk.frames)) and chunk.frames > 0
            fits = whole and chunk.index == expected and chunk.first_frame == position
            require(fits, f"plan.chunks[{expected}]", chunk, f"chunk {expected} of 1 frame or more from {position} on")
            position = chunk.end_frame
        room = self.chunks[self.prefix_chunks].frames - 1
        require_count("plan.held_frames", self.held_frames, minimum=0, maximum=room)
        done = {chunk.index: 0 for chunk in self.chunks[self.prefix_chunks :]}
        for expected, tick in enumerate(self.ticks):
            require(
                type(tick.index) is int and tick.index == expected,
                f"plan.ticks[{expected}]",
                tick.index,
                f"index {expected}",
            )
            whole = isinstance(tick.steps, tuple) and all(_is_step(item) for item in tick.steps)
            require(whole, f"plan.ticks[{expected}]", tick.steps, "a tuple of ChunkStep")
            order = [item.chunk for item in tick.steps]
            ascending = order == sorted(set(order))
            require(ascending, f"plan.ticks[{tick.index}]", order, "ascending chunks, each at most once")
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
    def prefix_frames(self) -> int:
        """Latent frames that are given clean: those of the prefix chunks and the held ones."""
        return self.chunks[self.prefix_chunks].first_frame + self.held_frames

    @property
    def total_steps(self) -> int:
        """Chunk steps in the whole plan: what "100 %" of the progress bar means."""
        return sum(len(tick.steps) for tick in self.ticks)

    @cached_property
    def first_tick(self) -> dict[int, int]:
        """Tick at which each chunk takes its first step (prefix chunks are absent)."""
        return {item.chunk: tick.index for tick in self.ticks for item in tick.steps if item.step == 0}

    @cached_property
    def last_tick(self) -> dict[int, int]:
        """Tick at which each chunk takes its last step (prefix chunks are absent)."""
        return {item.chunk: tick.index for tick in self.ticks for item in tick.steps if item.step == self.steps - 1}

    @cached_property
    def max_active(self) -> int:
        """The most chunks that are begun and not finished at the same tick (B_active in chunks)."""
        change = [0] * (len(self.ticks) + 1)
        for chunk, first in self.first_tick.items():
            change[first] += 1
            change[self.last_tick[chunk] + 1] -= 1
        return max(accumulate(change))

    def describe(self, columns: int = 24) -> str:
        """The plan as text: a row per chunk, a column per tick, each cell the step taken there.

        ``.`` is a tick without a step, ``clean`` a prefix chunk. Beyond ``columns`` ticks the middle is left out.
        """
        require_count("columns", columns, minimum=2)
        shown: list[Tick | None] = list(self.ticks)
        if len(shown) > columns:
            shown = [*self.ticks[: columns - columns // 2], None, *self.ticks[-(columns // 2) :]]
        width = max(3, len(str(len(self.ticks) - 1)))
        label = len(f"chunk {len(self.chunks) - 1}  frames {self.frames - 1}-{self.frames - 1}")

        def line(head: str, cells: list[str]) -> str:
            return f"{head:<{label}} " + " ".join(f"{cell:>{width}}" for cell in cells)

        lines = [
            f"{self.name}: {self.frames} latent frames in {len(self.chunks)} chunks, {self.steps} steps each, "
            f"{len(self.ticks)} ticks, at most {self.max_active} active",
            line("tick", ["..." if tick is None else str(tick.index) for tick in shown]),
        ]
        taken = [None if tick is None else {item.chunk: item.step for item in tick.steps} for tick in shown]
        for chunk in self.chunks:
            head = f"chunk {chunk.index}  frames {chunk.first_frame}-{chunk.end_frame - 1}"
            if chunk.index < self.prefix_chunks:
                lines.append(f"{head:<{label}} clean")
            else:
                lines.append(line(head, ["..." if row is None else str(row.get(chunk.index, ".")) for row in taken]))
        return "\n".join(lines)


def _is_step(item: object) -> bool:
    return isinstance(item, ChunkStep) and type(item.chunk) is int and type(item.step) is int


def split_frames(frames: int, chunk_frames: int, prefix_frames: int = 0) -> tuple[tuple[Chunk, ...], int]:
    """Cut ``frames`` latent frames into chunks; the prefix gets chunks of its own.

    Returns the chunks and how many of them are prefix. The last prefix chunk and the last chunk may be short.
    """
    require_count("chunk_frames", chunk_frames, minimum=1)
    require_count("frames", frames, minimum=1, maximum=MOST_FRAMES)
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


def offset_ticks(chunks: tuple[Chunk, ...], prefix_chunks: int, steps: int, offset: int) -> tuple[Tick, ...]:
    """Ticks in which every chunk starts ``offset`` ticks after the one before it and takes a step at each tick.

    Every published order is one of these: ``offset = steps`` is one chunk after the other, 0 is all chunks together.
    """
    active = chunks[prefix_chunks:]
    taken, accepted = len(active) * steps, f"fewer chunks or steps: at most {MOST_CHUNK_STEPS} steps of chunks in all"
    require(taken <= MOST_CHUNK_STEPS, "steps", Found(f"{steps} steps of {len(active)} chunks"), accepted)
    rows: list[list[ChunkStep]] = [[] for _ in range((len(active) - 1) * offset + steps)]
    for position, chunk in enumerate(active):
        for step in range(steps):
            rows[position * offset + step].append(ChunkStep(chunk.index, step))
    return tuple(Tick(index, tuple(row)) for index, row in enumerate(rows))
