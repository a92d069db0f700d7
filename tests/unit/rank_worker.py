"""What a process that is a rank does in the tests: ``rank_worker.py WHAT MESH FOLDER``. Rank 0 writes what it found."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rank_models import SIDE, cases, drawn, settings, wan

from flowcache_core.engine import generate
from flowcache_core.parallel.mesh import Mesh, joined
from flowcache_core.parallel.rank import as_rank
from flowcache_core.parallel.run import generate_on_ranks
from flowcache_core.parallel.shape import mesh_from_text
from flowcache_core.report.events import RunStarted, StepTaken


def inputs(settings):
    noise = drawn(1, 16, settings.plan.frames, SIDE, SIDE, seed=7)
    given = settings.plan.prefix_frames
    return noise, drawn(1, 16, given, SIDE, SIDE, seed=8) if given else None


def equal(mesh: Mesh, folder: Path) -> None:
    """Every case on ranks, and on rank 0 by itself."""
    found, names = {}, os.environ.get("RANK_CASES", "").split(",")
    for name, case in cases().items():
        if names != [""] and name not in names:
            continue
        noise, prefix = inputs(case.settings)
        events, before = [], mesh.traffic.total
        latents = generate_on_ranks(mesh, case.denoiser, case.settings, noise, prefix=prefix, observe=events.append)
        if mesh.rank == 0:
            alone = []
            expected = generate(case.denoiser, case.settings, noise, prefix=prefix, observe=alone.append)
            steps = [[e.action for e in run if isinstance(e, StepTaken)] for run in (events, alone)]
            started = [next(e for e in run if isinstance(e, RunStarted)).kv_bytes for run in (events, alone)]
            found[name] = {
                "difference": (latents - expected).abs().max().item(),
                "size": expected.abs().max().item(),
                "same decisions": steps[0] == steps[1],
                "reused": steps[0].count("reuse"),
                "parts": steps[0].count("part"),
                "kv": started,
                "sent": mesh.traffic.total - before,
            }
    if mesh.rank == 0:
        (folder / "found.json").write_text(json.dumps(found))


def other(changed: str) -> Callable[[Mesh, Path], None]:
    """Rank 1 does not have what rank 0 has."""

    def work(mesh: Mesh, folder: Path) -> None:
        first = mesh.rank == 0
        denoiser = wan(weights=3 if first or changed != "weights" else 4)
        engine = settings() if first or changed != "settings" else replace(settings(), clean_pass=True)
        noise, _ = inputs(engine)
        noise = noise if first or changed != "noise" else noise + 1
        generate_on_ranks(mesh, denoiser, engine, noise)

    return work


def failing(how: Callable[[], None]) -> Callable[[Mesh, Path], None]:
    """Rank 1 does ``how`` after its first step."""

    def work(mesh: Mesh, folder: Path) -> None:
        (folder / f"pid{mesh.rank}").write_text(str(os.getpid()))

        def observe(event: object) -> None:
            if isinstance(event, StepTaken) and mesh.rank == 1:
                how()

        generate_on_ranks(mesh, wan(), settings(), inputs(settings())[0], observe=observe)

    return work


def broken() -> None:
    raise ZeroDivisionError("a fault on this rank")


WORK: dict[str, Callable[[Mesh, Path], None]] = {
    "equal": equal,
    "settings": other("settings"),
    "weights": other("weights"),
    "noise": other("noise"),
    "dies": failing(lambda: os.kill(os.getpid(), 9)),
    "hangs": failing(lambda: time.sleep(600)),
    "stops": failing(lambda: os.kill(os.getpid(), 19)),
    "fails": failing(broken),
}


def main() -> int:
    what, mesh, folder, timeout = sys.argv[1:]
    torch.set_num_threads(1)
    with joined(mesh_from_text(mesh), timeout=float(timeout)) as joint:
        WORK[what](joint, Path(folder))
    return 0


if __name__ == "__main__":
    raise SystemExit(as_rank(main))
