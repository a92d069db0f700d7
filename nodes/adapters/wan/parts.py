"""The parts of a window that take a step at one tick, by noise level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ....flowcache_core.denoiser import ChunkInput


@dataclass(frozen=True)
class Part:
    """Neighbouring frames at one noise level."""

    first_frame: int
    end_frame: int
    sigma: float

    @property
    def frames(self) -> slice:
        return slice(self.first_frame, self.end_frame)


def parts_of(items: Sequence[ChunkInput]) -> list[Part]:
    """The chunks of a tick, those at the same level together where they touch."""
    parts: list[Part] = []
    for sigma, same in groupby(items, key=lambda item: item.sigma):
        for item in same:
            first, end = item.chunk.first_frame, item.chunk.end_frame
            if parts and parts[-1].sigma == sigma and parts[-1].end_frame == first:
                first = parts.pop().first_frame
            parts.append(Part(first, end, sigma))
    return parts
