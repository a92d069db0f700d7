"""Into how many groups a run of tokens is cut, and how many groups a layer must have room for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .tokens import Room


def group_count(tokens: int, most: int) -> int:
    """Groups of at most ``most`` tokens; a number near that divides ``tokens`` if there is one: all are equal then."""
    least = -(-tokens // most)
    return next((count for count in range(least, 2 * least) if tokens % count == 0), least)


@dataclass(frozen=True)
class Slots:
    """Room for groups. total: in all. kept: how many a compression may leave; the rest is for what is packed until the
    next one. a_run: the most that one run of tokens takes.
    """

    total: int
    kept: int
    a_run: int

    @classmethod
    def of(cls, room: Room, most: int, runs: Iterable[int]) -> Slots:
        """runs: the runs of tokens that are packed at once when nothing is ever dropped."""
        a_run = max(group_count(chunk, most) for chunk in room.chunks)
        everything = sum(min(a_run, group_count(run, most)) for run in runs if run)
        smallest = min(room.chunks)
        # Twice what is held: heads that drop other tokens leave the rests of more groups than there are chunks.
        kept = a_run * (-(-room.capacity // smallest) + -(-room.capacity // room.largest_chunk) + 3)
        more = a_run * (-(-room.active // smallest) + 1)
        if not room.shrinks or everything <= kept + more:
            return cls(max(everything, 1), max(everything, 1), a_run)
        return cls(kept + more, kept, a_run)
