"""The growing chunk x step map on the node that samples: core events to messages on the host's socket.

``web/`` draws it. A message is a whole snapshot (docs/live-map.md has its fields), so a browser that was reloaded needs
only the next one, or the last one that it asks for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from ....flowcache_core.report.events import Event, NotFinite, RunFinished, RunStarted
from ....flowcache_core.report.live import LiveRun
from ..run.settings import FlowCacheSettings
from .running_node import show_run

PAUSE = 0.25  # seconds between two messages
SHARE = 0.002  # of the run's time that messages may take: the dearer they are, the rarer


@dataclass
class LiveMap:
    """Observer of a run whose engine settings, one of each window, are known."""

    run: LiveRun
    settings: FlowCacheSettings
    started: RunStarted | None = field(default=None, init=False)
    next_message: float = field(default=0.0, init=False)

    def __call__(self, event: Event) -> None:
        self.run(event)
        if isinstance(event, RunStarted):
            self.started = event
        at_once = isinstance(event, RunStarted | NotFinite) or (isinstance(event, RunFinished) and self.run.complete)
        begun = time.monotonic()
        if at_once or begun >= self.next_message:
            show_run(self.message())
            now = time.monotonic()
            self.next_message = now + max(PAUSE, (now - begun) / SHARE)

    def message(self) -> dict[str, Any]:
        reuse = self.settings.reuse
        return {**self.run.snapshot(), "preset": reuse.preset if reuse else None, "expected": self.expected()}

    def expected(self) -> float | None:
        """dB that the preset's calibration promises for a run that computed what this one did; when it is over."""
        source = self.settings.reuse.source if self.settings.reuse else None
        if source is None or self.started is None or not self.run.complete or self.run.fault:
            return None
        return source.expected_psnr(self.run.share, self.started)

    def close(self) -> None:
        """The run is over; of one that broke off nothing stays."""
        if not self.run.complete:
            show_run(None)
