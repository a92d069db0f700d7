"""Records of events collected elsewhere, and pictures as arrays, for tests of what a run says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flowcache_core.report.events import Event
from flowcache_core.report.record import Recorder, RunRecord


def record(
    events: Iterable[Event],
    tag: str = "",
    threshold: float | None = None,
    flops: Callable[[Event], float] | None = None,
) -> RunRecord:
    """The record of events collected elsewhere."""
    recorder = Recorder(tag, threshold, flops)
    for event in events:
        recorder(event)
    return recorder.record()


def painted(figure: Figure) -> np.ndarray:
    """The figure, ``[H, W, 3]`` uint8."""
    canvas: Any = figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
