"""Seconds of each engine of sparse attention on this CPU, against dense attention, at one shape."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from flowcache_core.sparse.attend import choose_engine, dense
from flowcache_core.sparse.engines import Call
from flowcache_core.sparse.mask import SparseMask
from flowcache_core.sparse.xattention import XAttention

QUERIES, KEYS, HEADS, DIM, BLOCK, STRIDE = 1536, 6144, 4, 128, 128, 16
DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class Timed:
    """Best of ``runs`` calls. first: seconds of the first call beyond that, a compilation among them."""

    dtype: str
    engine: str
    density: float
    seconds: float
    first: float

    def __str__(self) -> str:
        return f"{self.dtype:9} {self.engine:10} {self.density:7.2f} {self.seconds * 1e3:9.1f} ms {self.first:7.1f} s"


def best(call: Callable[[], Any], runs: int = 5) -> tuple[float, float]:
    begun = time.perf_counter()
    call()
    first = time.perf_counter() - begun
    seconds = []
    for _ in range(runs):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return min(seconds), max(0.0, first - min(seconds))


def random_mask(density: float) -> SparseMask:
    """Every row keeps its own count of random blocks, so that rows are as unlike as they can be."""
    rows, columns = -(-QUERIES // BLOCK), -(-KEYS // BLOCK)
    draw = torch.rand(1, HEADS, rows, columns, generator=torch.Generator().manual_seed(0))
    kept = draw.argsort(-1).argsort(-1) < max(1, round(density * columns))
    return SparseMask(kept, BLOCK, QUERIES, KEYS)


def measure(tell: Callable[[str], None] = print) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rows: list[Timed] = []
    tell(f"{QUERIES} x {KEYS} tokens, {HEADS} heads of {DIM}, blocks of {BLOCK}, one thread")
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        generator = torch.Generator().manual_seed(1)
        q, k, v = (torch.randn(1, HEADS, n, DIM, generator=generator).to(dtype) for n in (QUERIES, KEYS, KEYS))

        def note(engine: str, density: float, call: Callable[[], Any], name: str = name) -> None:
            rows.append(Timed(name, engine, density, *best(call)))
            tell(str(rows[-1]))

        note("dense", 1.0, partial(dense, q, k, v))
        method = XAttention(BLOCK, 0.9, STRIDE)
        note("prediction", 0.0, partial(method.mask, q, k))
        for engine_name in ("gather", "flex"):
            choice = choose_engine(engine_name, Call.of(q, k, BLOCK))
            if choice.engine is None:
                tell(f"{name:9} {engine_name}: {choice.note}")
                continue
            for density in DENSITIES:
                note(engine_name, density, partial(choice.engine.attend, q, k, v, random_mask(density)))
    return [asdict(row) for row in rows]
