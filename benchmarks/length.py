"""Memory of a long run: 20, 100 and 400 chunks with a budget of 5, on the mini model.

    python dev.py bench length

Then with finished chunks packed in 8, 4 and 2 bits. Prints K/V bytes and how much the process grew beyond the latents
it keeps; two steps per chunk, since memory does not depend on their number. Without a budget, for comparison, at 20 and
100 chunks.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from flowcache_core.engine import generate
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.storage import STORAGES
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.report.events import ChunkFinished, Event, RunStarted
from flowcache_core.report.refusing import refusing

from .mini_runs import LONG, specimen
from .results import save

BUDGET = 5.0


def resident() -> int:
    """Bytes of this process in memory now; -1 where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else -1


def measure(chunks: int, budget: float | None, storage: str = "plain") -> dict[str, float]:
    """K/V bytes, and process growth between the first tenth of the run and its end, latents apart."""
    model = specimen().model
    settings = specimen().settings(
        replace(LONG, chunks=chunks, steps=2), kv=KVSettings(budget=budget, storage=STORAGES[storage]())
    )
    text = model.encode_prompt("a red circle moving right")
    sizes: list[int] = []
    kv_bytes = 0

    def observe(event: Event) -> None:
        nonlocal kv_bytes
        if isinstance(event, RunStarted):
            kv_bytes = event.kv_bytes
        if isinstance(event, ChunkFinished):
            sizes.append(resident())

    gc.collect()
    noise = model.noise(chunks, 0)
    denoiser = WanDenoiser(model.transformer, {0: (text, model.encode_prompt(""))}, 3.0)
    latents = generate(denoiser, settings, noise, observe=refusing(observe))
    early = sizes[min(len(sizes) - 1, 15)]
    return {
        "chunks": chunks,
        "kv_mb": kv_bytes / 1e6,
        "latents_mb": latents.nbytes / 1e6,
        "grown_mb": (sizes[-1] - early) / 1e6,
    }


@torch.no_grad()
def main(argv: Sequence[str]) -> int:
    """Print the table and save it."""
    measure(20, BUDGET)
    rows = []
    print(
        f"{'chunks':>6} {'budget':>7} {'storage':>7} {'K/V MB':>8} {'latents MB':>10} {'grown after chunk 16, MB':>25}"
    )
    runs = [(BUDGET, "plain", (20, 100, 400)), (None, "plain", (20, 100))]
    runs += [(BUDGET, storage, (20, 100)) for storage in ("int8", "int4", "int2")]
    for budget, storage, lengths in runs:
        for chunks in lengths:
            row = measure(chunks, budget, storage)
            rows.append({**row, "budget": budget, "storage": storage})
            shown = "none" if budget is None else f"{budget:g}"
            sizes = f"{row['kv_mb']:8.2f} {row['latents_mb']:10.2f} {row['grown_mb']:25.2f}"
            print(f"{chunks:6} {shown:>7} {storage:>7} {sizes}")
            sys.stdout.flush()
    print(f"\nsaved: {save('length', {'rows': rows})}")
    return 0
