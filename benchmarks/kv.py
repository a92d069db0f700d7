"""K/V in fewer bytes: every storage, every compressor at 1/2, 1/4 and 1/8 of the history, and both together.

    python dev.py bench kv
    python -m benchmarks.kv --model scenes --part both

9 chunks, 8 of them history. Bytes are counted for a model in 16 bits, against its whole history in 16 bits: "held" is
what a run holds at its peak (active chunk, scales, tables and positions included), "read" the buffer that packed
tokens are unpacked into. PSNR is to the run that keeps all as computed. Rows are saved as they are made; a second call
goes on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from flowcache_core.calibrate.runs import Spread, videos
from flowcache_core.commands.arguments import Parser
from flowcache_core.errors import require_count
from flowcache_core.kv import COMPRESSORS
from flowcache_core.kv.compressor import Compressor
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.size import peak_bytes, read_bytes
from flowcache_core.kv.storage import STORAGES, Int2, Plain
from flowcache_core.kv.storage.base import Storage
from flowcache_core.report.quality import decibel

from .meaning import Rates, right
from .mini_runs import LONG, MODELS, Comparison, pairs, run, specimen
from .results import save, stored

CHUNKS = 9
BUDGETS = {"1/2": 4.0, "1/4": 2.0, "1/8": 1.0}
PARTS = ("storage", "compressor", "both")
PAIRS, STEPS = {"mini": 16, "scenes": 4}, {"mini": 12, "scenes": 8}
Choice = tuple[str, KVSettings]


@dataclass(frozen=True)
class Row:
    """psnr: median in dB, psnr_p10: the 10th percentile. rates: of what prompts ask for by question, right: in all."""

    name: str
    psnr: float
    psnr_p10: float
    right: float | None
    rates: Rates

    HEADER = f"{'method':44} {'PSNR':>6} {'p10':>6} {'right':>6}"

    @classmethod
    def of(cls, name: str, comparison: Comparison, latents: Tensor) -> Row:
        outcomes = videos(comparison.specimen, latents)
        near = Spread.of(map(psnr, outcomes, comparison.reference))
        rates = comparison.rates(outcomes)
        return cls(name, near.median, near.p10, right(rates), rates)

    def __str__(self) -> str:
        return f"{self.name:44} {self.psnr:6.2f} {self.psnr_p10:6.2f} {self.right:6.1%}"


def psnr(video: Tensor, reference: Tensor) -> float:
    """dB between uint8 videos ``[T, H, W, 3]``; no SSIM beside it, which takes as long as decoding."""
    squares = (
        (one.float() - other.float()).square().mean().item() for one, other in zip(video, reference, strict=True)
    )
    return decibel(fmean(squares) / 255**2)


def storages() -> Iterator[tuple[str, Storage]]:
    for name, kind in STORAGES.items():
        yield name, kind()
    yield "int2, newest chunk exact", Int2(exact_recent=1.0)


def fitted(kind: type[Compressor], budget: float) -> Compressor:
    """A compressor with ends that leave it something to choose at this budget."""
    names = {"sink", "recent"} & set(kind.__dataclass_fields__)
    if names == {"sink", "recent"}:
        return kind(sink=min(1.0, budget / 4), recent=min(1.0, budget / 2))  # type: ignore[call-arg]
    return kind(sink=min(1.0, budget - 1)) if names == {"sink"} else kind()  # type: ignore[call-arg]


def choices(part: str) -> Iterator[Choice]:
    """Name and settings of every row of one part."""
    if part == "storage":
        yield from ((name, KVSettings(storage=storage)) for name, storage in storages())
        return
    for share, budget in BUDGETS.items():
        for name, kind in COMPRESSORS.items():
            if name == "shot-sink":  # of one prompt: sink-window to the bit
                continue
            if part == "compressor":
                yield f"{name}, {share}", KVSettings(budget, fitted(kind, budget))
            elif name in ("sink-window", "importance-redundancy", "density") and share != "1/8":
                for stored_as, storage in storages():
                    if not isinstance(storage, Plain):
                        yield f"{name}, {share}, {stored_as}", KVSettings(budget, fitted(kind, budget), storage=storage)


def bytes_of(comparison: Comparison, kv: KVSettings) -> dict[str, int]:
    """Held and read at most by one video's run in 16 bits, and what the whole history in 16 bits takes."""
    of, setup = comparison.specimen, comparison.setup
    denoiser = of.denoiser([comparison.batch[0][0]], setup)
    spec = replace(denoiser.kv_spec(of.noise(setup.chunks, 0)), dtype=torch.bfloat16)
    plan = of.settings(setup).plan
    whole = peak_bytes(spec, KVSettings(), plan)
    return {"held": peak_bytes(spec, kv, plan), "read": read_bytes(spec, kv, plan), "whole": whole}


def main(argv: Sequence[str]) -> int:
    """Print the tables and save them."""
    p = Parser("kv", description=__doc__)
    p.add_argument("--model", default="mini", choices=list(MODELS))
    p.add_argument("--part", choices=PARTS, help="only this one")
    p.add_argument("--pairs", type=int, help=f"held-out prompts and seeds (default: {PAIRS})")
    p.add_argument("--steps", type=int, help=f"denoising steps of a chunk (default: {STEPS})")
    options = p.parse_args(argv)
    of = specimen(options.model)
    count = PAIRS[of.name] if options.pairs is None else options.pairs
    steps = STEPS[of.name] if options.steps is None else options.steps
    require_count("pairs", count, minimum=1, maximum=100)
    require_count("steps", steps, minimum=2, maximum=1000)
    setup = replace(LONG, chunks=CHUNKS, steps=steps, guidance=of.default.guidance)
    comparison = Comparison(setup, pairs(1000, count, of.name), of=of)
    uncached = comparison.rates(comparison.reference)
    name = "kv" if of.name == "mini" else f"kv-{of.name}"
    chosen = {"model": of.name, "pairs": count, "steps": steps, "chunks": CHUNKS}
    content = stored(name)
    if {key: content.get(key) for key in chosen} != chosen:
        content = {**chosen, "uncached": uncached, "rows": []}
    rows: list[dict[str, Any]] = content["rows"]
    print(f"all of it kept as computed: {right(uncached):.1%} right\n{Row.HEADER}   held   read  of 16 bits")
    for part in PARTS if options.part is None else (options.part,):
        for title, kv in choices(part):
            if any(row["name"] == title for row in rows):
                continue
            begun = time.perf_counter()
            latents = run(setup, comparison.batch, of=of, kv=kv)[1]
            seconds = time.perf_counter() - begun
            row, sizes = Row.of(title, comparison, latents), bytes_of(comparison, kv)
            share = (sizes["held"] + sizes["read"]) / sizes["whole"]
            figures = f"{sizes['held'] / sizes['whole']:6.1%} {sizes['read'] / sizes['whole']:6.1%} {share:6.1%}"
            print(row, figures, f"{seconds:.0f} s", flush=True)
            rows.append({"part": part, **asdict(row), **sizes, "seconds": seconds})
            save(name, content)
    print(f"\nsaved: benchmarks/results/{name}.json")
    return 0


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
