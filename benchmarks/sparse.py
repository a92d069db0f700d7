"""Sparse attention of the bundled models: density against quality and FLOPs, masks that serve again, engines' seconds.

``python -m benchmarks.sparse [PART ...]`` runs some parts alone: engines, step, videos, masks, together; MODEL: before
a part, such as scenes:videos, for another bundled model than the mini one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from flowcache_core.calibrate.bundled import BUNDLED
from flowcache_core.calibrate.runs import Setup, Specimen
from flowcache_core.errors import require
from flowcache_core.presets.sparse import SparsePreset, load_sparse, sparse_names

from . import sparse_engines, sparse_masks
from .mini_runs import pairs
from .results import save, stored
from .sparse_together import together
from .sparse_videos import DENSITIES, SCENES, VIDEOS, VideoRow, Videos, in_run, methods, one_step, places

SEED = 1000
NAME = "sparse"


def keep(part: str, figures: Any) -> None:
    """What is known by now; a run that is stopped loses nothing."""
    print(f"saved: {save(NAME, {**stored(NAME), part: figures})}", flush=True)


@dataclass(frozen=True)
class Case:
    """What a model is measured on. few: fewer methods and samples, for the dear one."""

    setup: Setup
    videos: int
    samples: int
    few: bool


CASES = {"mini": Case(VIDEOS, 6, 9, False), "scenes": Case(SCENES, 4, 6, True)}


def step(specimen: Specimen, preset: SparsePreset) -> list[dict[str, Any]]:
    case = CASES[specimen.name]
    batch, where = pairs(SEED + 500, 2, specimen.name), places(specimen, case.setup, case.samples)
    rows = one_step(specimen, preset, batch, case.setup, where, case.few)
    print(f"error of one step's velocity, {rows[0]['samples']} samples")
    for row in rows:
        print(f"{row['method']:20} asked {row['asked']:.2f} density {row['density']:.3f} error {row['error']:.2e}")
    return rows


def whole_videos(specimen: Specimen, preset: SparsePreset) -> list[dict[str, Any]]:
    case, rows = CASES[specimen.name], []
    comparison = Videos(specimen, pairs(SEED, case.videos, specimen.name), case.setup)
    print(f"{case.videos} videos of {case.setup.chunks} chunks, {case.setup.steps} steps\n{VideoRow.HEADER}")
    for density in DENSITIES:
        for name, method in methods(preset, density, case.few):
            found = comparison.row(f"{density:g}: {name}", sparse=in_run(method, specimen, case.setup))
            rows.append({"asked": density, "method": name, **found.row()})
            print(found, flush=True)
    return rows


def masks(specimen: Specimen, preset: SparsePreset) -> list[dict[str, Any]]:
    assert preset.method.table is not None
    subject = preset.method.table.subject
    setup = replace(CASES[specimen.name].setup, chunks=5)
    rows = sparse_masks.measure(specimen, pairs(SEED, 2, specimen.name), setup, subject.block, subject.stride)
    for row in rows:
        across = ", across chunks" if row["across_chunks"] else ""
        share = f"{row['served']:.0%} served again, {row['of_fresh']:.4f} of fresh mass {row['fresh_mass']:.3f}"
        print(f"drift {row['drift']:g}{across}: {share}", flush=True)
    return rows


def combined(specimen: Specimen, preset: SparsePreset) -> list[dict[str, Any]]:
    case = CASES[specimen.name]
    return together(Videos(specimen, pairs(SEED, case.videos, specimen.name), case.setup), preset)


PARTS: dict[str, Callable[[Specimen, SparsePreset], Any]] = {
    "step": step,
    "videos": whole_videos,
    "masks": masks,
    "together": combined,
}


def specimen_and_preset(model: str) -> tuple[Specimen, SparsePreset]:
    rows = [name for of, name in sparse_names().values() if of == model]
    require(model in BUNDLED and len(rows) > 0, "model", model, "a bundled model with calibrated heads")
    return BUNDLED[model](), load_sparse(model, rows[0])


def main(argv: Sequence[str]) -> int:
    """Print and save the tables."""
    torch.set_num_threads(1)
    wanted = list(argv) or ["engines", *PARTS]
    for name in wanted:
        model, _, part = name.rpartition(":")
        require(part in PARTS or name == "engines", "part", name, ", ".join(("engines", *PARTS)))
        print(f"-- {name}", flush=True)
        if part == "engines":
            keep("engines", sparse_engines.measure())
            continue
        specimen, preset = specimen_and_preset(model or "mini")
        rows = PARTS[part](specimen, preset)
        keep(name, rows)
        if part == "videos":
            compare(rows)
    return 0


def compare(rows: Sequence[dict[str, Any]]) -> None:
    """p per head against each rival at the same density, video by video."""
    for density in DENSITIES:
        here = {row["method"]: row for row in rows if row["asked"] == density}
        best = here["p per head"]["psnr"]
        for name, row in here.items():
            if name != "p per head":
                gains = [a - b for a, b in zip(best, row["psnr"], strict=True)]
                wins = sum(gain > 0 for gain in gains)
                print(
                    f"{density:g}: p per head {statistics.fmean(gains):+.2f} dB over {name}, in {wins} of {len(gains)}"
                )


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
