"""Seconds of each engine of sparse attention against dense attention at one shape: on this CPU, or (bench cuda) a
GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from flowcache_core.sparse.attend import choose_engine, dense
from flowcache_core.sparse.engines import Call
from flowcache_core.sparse.mask import SparseMask, blocks
from flowcache_core.sparse.xattention import XAttention

DENSITIES = (1.0, 0.5, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class Shape:
    """One layer of one branch: a chunk's queries and the keys of its context."""

    queries: int = 1536
    keys: int = 6144
    heads: int = 4
    dim: int = 128
    block: int = 128
    stride: int = 16

    def __str__(self) -> str:
        return f"{self.queries} x {self.keys} tokens, {self.heads} heads of {self.dim}, blocks of {self.block}"

    def mask(self, density: float, device: torch.device) -> SparseMask:
        """Every row keeps its own random blocks, as many as the others, so that rows are as unlike as they can be."""
        rows, columns = blocks(self.queries, self.block), blocks(self.keys, self.block)
        draw = torch.rand(1, self.heads, rows, columns, generator=torch.Generator().manual_seed(0))
        kept = draw.argsort(-1).argsort(-1) < max(1, round(density * columns))
        return SparseMask(kept.to(device), self.block, self.queries, self.keys)


@dataclass(frozen=True)
class Timed:
    """Best of some calls. first: seconds of the first call beyond that, and of compiling and trying the kernel."""

    dtype: str
    engine: str
    density: float
    seconds: float
    first: float

    def __str__(self) -> str:
        return f"{self.dtype:9} {self.engine:10} {self.density:7.2f} {self.seconds * 1e3:9.2f} ms {self.first:7.1f} s"


def best(call: Callable[[], Any], device: torch.device, runs: int = 5) -> tuple[float, float]:
    def lap() -> float:
        begun = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    first = lap()
    least = min(lap() for _ in range(runs))
    return least, max(0.0, first - least)


@torch.no_grad()
def measure(
    shape: Shape | None = None,
    device: torch.device | None = None,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    engines: Sequence[str] = ("gather", "flex"),
    tell: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """One row per dtype, engine and density. An engine that does not work here leaves a line that says why."""
    shape, device = shape or Shape(), device or torch.device("cpu")
    rows: list[Timed] = []
    tell(str(shape))
    for dtype in dtypes:
        generator = torch.Generator().manual_seed(1)
        sizes = (shape.queries, shape.keys, shape.keys)
        q, k, v = (torch.randn(1, shape.heads, n, shape.dim, generator=generator).to(device, dtype) for n in sizes)
        compiling: dict[str, float] = {}
        method, name = XAttention(shape.block, 0.9, shape.stride), str(dtype).removeprefix("torch.")
        calls: list[tuple[str, float, Callable[[], Any]]] = [
            ("dense", 1.0, partial(dense, q, k, v)),
            ("prediction", 0.0, partial(method.mask, q, k)),
        ]
        for engine_name in engines:
            begun = time.perf_counter()
            choice = choose_engine(engine_name, Call.of(q, k, shape.block))
            compiling[engine_name] = time.perf_counter() - begun
            if choice.engine is None:
                tell(f"{name:9} {engine_name}: {choice.note}")
                continue
            attend = choice.engine.attend
            calls += [(engine_name, d, partial(attend, q, k, v, shape.mask(d, device))) for d in DENSITIES]
        for engine_name, density, call in calls:
            seconds, first = best(call, device)
            rows.append(Timed(name, engine_name, density, seconds, first + compiling.pop(engine_name, 0.0)))
            tell(str(rows[-1]))
    return [asdict(row) for row in rows]
