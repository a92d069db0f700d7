"""Every published model gone through at full size: memory, FLOPs by torch and by the cost model, traffic, and what the
dry run itself took.

    python dev.py bench dryrun

One process for each, so that its own time and memory are its own. Results are written after each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from flowcache_core.dry_run.models import SELF_FORCING, names, published
from flowcache_core.presets import kind_of

from .results import save

GIB = 2**30
MOST_SECONDS, MOST_GB = 600, 8.0  # of a dry run on two cores: what it is held to


def rows() -> list[tuple[str, str, tuple[str, ...]]]:
    """Model, preset and further arguments."""
    found: list[tuple[str, str, tuple[str, ...]]] = []
    for name in names():
        found.append((name, "fast" if kind_of_run(name) == "wan" else "vanilla", ()))
    return [*found, (SELF_FORCING, "vanilla", ("--kv-device", "cpu"))]


def kind_of_run(name: str) -> str | None:
    return None if name == SELF_FORCING else kind_of(published(name))


def measure(name: str, preset: str, more: Sequence[str]) -> dict[str, Any]:
    asked = ["cost", "--dry-run", "--model", name, "--preset", preset, "--json", *more]
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "flowcache_core", *asked], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"the dry run of {name} ended with status {status}")
    result: dict[str, Any] = json.loads(told)
    result["took"] = {
        "seconds": time.perf_counter() - begun,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "resident_gb": usage.ru_maxrss * 1024 / 1e9,
    }
    return result


def line(result: dict[str, Any], more: Sequence[str]) -> str:
    peak, took = result["memory"]["device"], result["took"]
    split = " + ".join(f"{part} {size / GIB:.1f}" for part, size in peak["parts"].items() if size > GIB / 20)
    return (
        f"{' '.join((result['model'], result['preset'], *more)):44} {peak['peak_bytes'] / GIB:6.1f} GiB ({split}), "
        f"{result['pflops_counted_by_torch']:.1f} / {result['pflops']:.1f} PFLOPs, "
        f"{result['kernels_per_step']:.0f} kernels and {result['syncs_per_step']:.2f} syncs a step; took "
        f"{took['cpu_seconds']:.0f} s of CPU, {took['resident_gb']:.2f} GB"
    )


def main(argv: Sequence[str]) -> int:
    """Exit status 1 when one took longer or more memory than it may."""
    figures: dict[str, Any] = {}
    for name, preset, more in rows():
        result = measure(name, preset, more)
        figures[" ".join((name, preset, *more))] = result
        print(line(result, more), flush=True)
        path = save("dryrun", figures)
    print(f"\nsaved: {path}")
    took = [result["took"] for result in figures.values()]
    return int(any(one["cpu_seconds"] > MOST_SECONDS or one["resident_gb"] > MOST_GB for one in took))
