"""K/V bytes at published sizes, counted: every storage with all of the history, with a budget of 4, and what may be
kept within a tenth of the whole history in 16 bits.

    python dev.py bench kv_bytes

One branch, 16 bits. Tables, positions, sampled queries, active chunks and the buffer that packed layers are read into
are in all figures; nothing is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from flowcache_core.dry_run.models import SELF_FORCING, config_of
from flowcache_core.errors import require
from flowcache_core.kv.layout import history_frames, max_active_frames
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.sink_window import SinkWindow
from flowcache_core.kv.size import run_bytes
from flowcache_core.kv.spec import KVSpec
from flowcache_core.kv.storage import STORAGES
from flowcache_core.models.magi.config import MagiConfig
from flowcache_core.models.wan.config import HEAD_DIM
from flowcache_core.plan import blockwise, window
from flowcache_core.plan.base import Plan

from .results import save
from .tenth import Bytes

GIB, BUDGET, STEPS = 2**30, 4.0, 4
MAGI = "magi-1-4.5b"


@dataclass(frozen=True)
class Row:
    """Bytes of one storage. within: chunks of history that a tenth of the whole leaves room for with sink-window; None
    where not even its ends fit."""

    shape: str
    storage: str
    all_kept: int
    budget_4: int
    within: float | None
    whole: int

    def __str__(self) -> str:
        parts = (f"{size / GIB:8.2f} {self.whole / size:5.1f}x" for size in (self.all_kept, self.budget_4))
        room = "-" if self.within is None else f"{self.within:g}"
        return f"{self.storage:10}{' '.join(parts)} {room:>10}"


def spec_of(name: str, tokens_per_frame: int) -> KVSpec:
    config = config_of(name)
    if isinstance(config, MagiConfig):
        heads, layers, size = config.kv_heads, config.num_layers, config.head_dim
    else:
        heads, layers, size = config.num_heads, config.num_layers, HEAD_DIM
    return KVSpec(layers, heads, size, tokens_per_frame, 1, 1, dtype=torch.bfloat16, query_heads=config.num_heads)


def shapes() -> Iterator[tuple[str, KVSpec, Plan]]:
    wan, magi = spec_of(SELF_FORCING, 30 * 52), spec_of(MAGI, 45 * 45)
    for chunks in (21, 81):
        yield f"{SELF_FORCING}, 832x480, {chunks} chunks of 3", wan, blockwise(3 * chunks, 3, STEPS)
    yield f"{MAGI}, 720x720, 40 chunks of 6, window of 4", magi, window(240, 6, STEPS, 4)


def rows(shape: str, spec: KVSpec, plan: Plan) -> Iterator[Row]:
    sizes = Bytes(spec, plan)
    for name, kind in STORAGES.items():
        every = run_bytes(spec, KVSettings(storage=kind()), plan)
        bounded = run_bytes(spec, KVSettings(BUDGET, SinkWindow(), storage=kind()), plan)
        fits = sizes.largest(SinkWindow, kind(), 10.0)
        yield Row(shape, name, every, bounded, fits.budgets[0] if fits else None, sizes.whole)


def main(argv: Sequence[str]) -> int:
    """Print the table and save it."""
    require(not argv, "options", " ".join(argv), "none")
    found = []
    for shape, spec, plan in shapes():
        sizes, unit = Bytes(spec, plan), plan.chunks[0].frames
        active, history = max_active_frames(plan) / plan.frames, history_frames(plan) / unit
        print(
            f"\n{shape}: {sizes.whole / GIB:.2f} GiB in 16 bits, active chunks {active:.1%}, history {history:g} chunks"
        )
        print(f"{'storage':10}{'all kept, GiB':>15} {'budget 4, GiB':>15} {'in a tenth, chunks':>10}")
        for row in rows(shape, spec, plan):
            print(row, flush=True)
            found.append(asdict(row))
    print(f"\nsaved: {save('kv_bytes', {'rows': found})}")
    return 0
