"""A sign of life from every rank, for the process that started them: when all stop at once, none of them waits for
another and nobody else would notice.

A thread of the rank sets the time of its file anew, so a rank that computes for long is not taken for one that stands
still: torch lets other threads run meanwhile, and Python does. Only what stops all threads is seen (a process that is
stopped, a call that never returns and lets nobody else run).
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PULSE = 0.5  # seconds between two
LATE = 5.0  # seconds that one may be late in any case, whatever the timeout
# Seconds of a rank that has not joined yet, or has left: imports and the end of Python let nobody else run.
AWAY = 300.0
LONGEST_LOOK = 0.3  # of the seconds between two looks: more means that this process, too, was held up
ALIVE, JOINED = ".alive", ".joined"  # behind the number of the rank


def _file(folder: str, rank: int | str, name: str) -> Path:
    return Path(folder) / f"{rank}{name}"


def beat(folder: str, rank: str) -> None:
    """On the rank: from now on it gives signs of life, in ``folder``, where the starter has made its file."""
    path = _file(folder, rank, ALIVE)

    def on() -> None:
        while True:
            with suppress(OSError):
                os.utime(path)
            time.sleep(PULSE)

    threading.Thread(target=on, daemon=True, name="flowcache-pulse").start()


def has_joined(folder: str, rank: str) -> None:
    """On the rank: what it does first is done, which is a sign of life itself."""
    with suppress(OSError):
        os.utime(_file(folder, rank, ALIVE))
        _file(folder, rank, JOINED).touch()


def has_left(folder: str, rank: str) -> None:
    """On the rank: nobody waits for it any more."""
    with suppress(OSError):
        os.utime(_file(folder, rank, ALIVE))
        _file(folder, rank, JOINED).unlink()


@dataclass
class Pulses:
    """On the starter: how long each of ``count`` ranks has given no sign, in seconds in which this process ran itself.

    Times of files are compared with one another, never with a clock: clocks are set, and machines sleep.
    """

    folder: str
    count: int
    joined: list[bool] = field(init=False)
    seen: list[int | None] = field(init=False)
    without: list[float] = field(init=False)
    looked: float = field(init=False)

    def __post_init__(self) -> None:
        for rank in range(self.count):
            _file(self.folder, rank, ALIVE).touch()
        self.joined = [False] * self.count
        self.seen, self.without = [None] * self.count, [0.0] * self.count
        self.looked = time.monotonic()

    def look(self) -> None:
        now = time.monotonic()
        passed = min(now - self.looked, LONGEST_LOOK)
        if passed < PULSE / 2:
            return
        self.looked = now
        for rank in range(self.count):
            self.joined[rank] = _file(self.folder, rank, JOINED).exists()
            newest = None  # of a file that somebody has deleted nothing is known
            with suppress(OSError):
                newest = _file(self.folder, rank, ALIVE).stat().st_mtime_ns
            same = newest is not None and newest == self.seen[rank]
            self.without[rank] = self.without[rank] + passed if same else 0.0
            self.seen[rank] = newest

    def silent(self, timeout: float) -> list[int]:
        """Ranks that have given no sign for ``timeout`` seconds."""
        self.look()
        limits = [max(timeout, LATE if joined else AWAY) for joined in self.joined]
        return [rank for rank in range(self.count) if self.without[rank] > limits[rank]]
