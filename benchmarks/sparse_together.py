"""What sparse attention adds to step reuse, a K/V budget and quantised K/V, and which does most at equal FLOPs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from flowcache_core.calibrate.tables import FORECAST
from flowcache_core.kv.settings import KVSettings
from flowcache_core.presets.sparse import SparsePreset
from flowcache_core.reuse.schedule import StaticSchedule, spread
from flowcache_core.sparse.mask_reuse import MaskReuse
from flowcache_core.sparse.settings import SparseSettings

from .sparse_videos import VideoRow, Videos

DENSITY, FEW = 0.3, 10
"""Density of the sparse chunks, and computed steps of the rows that reuse many."""


def reuse(computed: int, steps: int) -> dict[str, Any]:
    return {"policy": StaticSchedule(warmup_steps=1, computed=spread(computed, steps, 1)), "quantity": FORECAST}


def rows(preset: SparsePreset, steps: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Neighbours are rows of about the same FLOPs; then everything together."""
    per_head = preset.at(DENSITY).shared_out
    attention = {"sparse": SparseSettings(per_head)}
    again = {"sparse": SparseSettings(per_head, reuse=MaskReuse())}
    few = reuse(FEW, steps)
    bounded, small = KVSettings(budget=4.0), KVSettings(budget=4.0, dtype=torch.float8_e4m3fn)
    yield f"sparse {DENSITY:g}", attention
    yield f"sparse {DENSITY:g}, masks again", again
    yield "K/V budget 4", {"kv": bounded}
    for computed in (steps - 1, steps - 2):
        yield f"{computed} of {steps} steps", reuse(computed, steps)
    yield f"{FEW} of {steps} steps", few
    yield f"{FEW} steps + sparse", {**few, **again}
    yield f"{FEW - 1} of {steps} steps", reuse(FEW - 1, steps)
    yield f"{FEW} steps + K/V 4", {**few, "kv": bounded}
    yield f"{FEW} steps + K/V 4 + sparse", {**few, **again, "kv": bounded}
    yield f"{FEW} steps + K/V 4 fp8 + sparse", {**few, **again, "kv": small}


def together(comparison: Videos, preset: SparsePreset) -> list[dict[str, Any]]:
    print(f"{len(comparison.pairs)} videos of {comparison.setup.chunks} chunks\n{VideoRow.HEADER}")
    found = []
    for name, changes in rows(preset, comparison.setup.steps):
        row = comparison.row(name, **changes)
        found.append(row.row())
        print(row, flush=True)
    return found
