"""The growing chunk x step map on the node that samples: core events to messages on the host's socket.

``web/`` draws it. A message is a whole snapshot (docs/live-map.md has its fields), so a browser that was reloaded needs
only the next one, or the last one that it asks for.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from ....flowcache_core.report.events import Event, NotFinite, RunFinished, RunStarted
from ....flowcache_core.report.live import LiveRun
from ..before.wiring import Wired
from ..run.settings import FlowCacheSettings
from .running_node import RunningNode, listening, show_run

PAUSE = 0.5  # seconds between two messages
SHARE = 0.0003  # of the run's time that messages may take: the dearer they are, the rarer
NEWS = (RunStarted, NotFinite)  # what is told without a pause
MOST = 3.0  # seconds that nobody is told anything: one message dear by chance (a collection fell on it) is no rule


@dataclass
class LiveMap:
    """Observer of a run whose engine settings, one of each window, are known."""

    run: LiveRun
    settings: FlowCacheSettings
    started: RunStarted | None = field(default=None, init=False)
    next_message: float = field(default=0.0, init=False)
    nodes: list[str] = field(default_factory=list, init=False)

    def __call__(self, event: Event) -> None:
        self.run(event)
        if isinstance(event, RunStarted):
            self.started, self.nodes = event, self.nodes or nodes_behind()
        if time.monotonic() >= self.next_message or self.at_once(event):
            # The processor's time of this thread: what else runs on a busy machine makes no message dearer.
            begun = time.thread_time()
            show_run(self.message())
            self.next_message = time.monotonic() + min(max(PAUSE, (time.thread_time() - begun) / SHARE), MOST)

    def at_once(self, event: Event) -> bool:
        """Whether it is told without a pause."""
        return isinstance(event, NEWS) or (isinstance(event, RunFinished) and self.run.complete)

    def message(self) -> dict[str, Any]:
        reuse = self.settings.chosen
        told = {
            "preset": reuse.preset if reuse else None,
            "notes": list(reuse.remarks) if reuse else [],
            "expected": self.expected(),
            "nodes": self.nodes,
        }
        return {**self.run.snapshot(), **told}

    def expected(self) -> float | None:
        """dB that the preset's calibration promises for a run that computed what this one did; when it is over."""
        chosen = self.settings.chosen
        source = chosen.source if chosen else None
        if source is None or not source.measured or self.started is None or not self.run.complete or self.run.fault:
            return None
        return source.expected_psnr(self.run.share, self.started)

    def close(self) -> None:
        """The run is over; of one that broke off nothing stays."""
        if not self.run.complete:
            show_run(None)


def nodes_behind() -> list[str]:
    """The pack's nodes that the sampling which runs now goes through, and the reports on it."""
    here = RunningNode.now()
    try:
        wired = Wired.running(here.display) if here is not None and listening() else None
    except Exception as error:  # what is shown ends no run
        logging.debug("FlowCache: which nodes the run goes through is not known: %r", error)
        return []
    return [] if wired is None else wired.nodes
