"""A run's progress in the terminal: a bar where the line can be redrawn, one line at the end where it cannot."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TextIO

from .events import Event, NotFinite, RunFinished, RunStarted, StepTaken

_WIDTH = 30  # characters of the bar
_PAUSE = 0.1  # seconds between two redraws
_ERASE = "\033[K"  # what a longer line left behind


@dataclass
class Progress:
    """Observer that shows how far one run is. ``stream`` is asked whether it is a terminal."""

    label: str
    stream: TextIO
    _total: int = field(default=0, init=False)
    _done: int = field(default=0, init=False)
    _reused: int = field(default=0, init=False)
    _drawn: float = field(default=0.0, init=False)
    _started: float = field(default=0.0, init=False)
    _broken: NotFinite | None = field(default=None, init=False)

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._total, self._done, self._reused, self._broken = event.total_steps, 0, 0, None
            self._started = time.monotonic()
        elif isinstance(event, StepTaken):
            self._done += 1
            self._reused += event.action == "reuse"
            if self.stream.isatty() and time.monotonic() - self._drawn >= _PAUSE:
                self._drawn = time.monotonic()
                left = time_left(self._done, self._total, self._drawn - self._started)
                self.stream.write(f"\r{self.line()}, {left} left{_ERASE}")
                self.stream.flush()
        elif isinstance(event, NotFinite):
            self._broken = self._broken or event
        elif isinstance(event, RunFinished):
            start, end = ("\r", _ERASE) if self.stream.isatty() else ("", "")
            self.stream.write(f"{start}{self.line()}, {event.seconds:.1f} s{end}\n")
            self.stream.flush()

    def line(self) -> str:
        """Such as "flowcache [#####.....] 50/100 steps, 20 reused"."""
        filled = _WIDTH * self._done // max(1, self._total)
        bar = "#" * filled + "." * (_WIDTH - filled)
        since = f", not finite from {self._broken.place} on" if self._broken else ""
        return f"{self.label:<9} [{bar}] {self._done}/{self._total} steps, {self._reused} reused{since}"


def time_left(done: int, total: int, seconds: float) -> str:
    """Such as "1:05" or "2:01:40", if the steps to come take as long as those done in ``seconds`` took on average.

    Reused steps cost next to nothing, so warm-up steps make this too long at first. "?" before the first step is done.
    """
    if done == 0:
        return "?"
    minutes, rest = divmod(round(seconds / done * (total - done)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
