"""The recall test of mini scenes as a column: a shape is left behind, the camera comes back; is it there, and the same?

Videos begin with a true first chunk and are as long as the test needs, whatever the benchmark's own length is.
"""

from __future__ import annotations

from typing import Any

from flowcache_core.calibrate.runs import Setup
from flowcache_core.mini_scenes.evaluate import RECALL_NAMES, recall_of

from .meaning import Rates
from .mini_runs import specimen

SAMPLES = 4
SHORT = dict(zip(RECALL_NAMES, ("back", "colour", "shape", "place"), strict=True))


def recalled(setup: Setup, **changes: Any) -> Rates:
    """Rates of :data:`SAMPLES` videos with the setup's steps, guidance and solver. changes: engine settings."""
    return recall_of(specimen("scenes").model, SAMPLES, 0, setup.steps, setup.guidance, solver=setup.solver, **changes)


def recall_text(recall: Rates) -> str:
    """The questions with their rates, in one line."""
    return "  ".join(f"{SHORT[name]} {share:.0%} of {count}" for name, (share, count) in recall.items())
