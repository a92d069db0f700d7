"""What a process that is a rank does in the tests: ``rank_worker.py WHAT MESHES FOLDER TIMEOUT``. Rank 0 writes what
it found; of what is refused, every rank."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rank_models import SIDE, cases, drawn, refusals, settings, wan

from flowcache_core.engine import generate
from flowcache_core.errors import SettingError
from flowcache_core.parallel import run
from flowcache_core.parallel.mesh import Mesh, arranged, joined
from flowcache_core.parallel.rank import as_rank
from flowcache_core.parallel.run import generate_on_ranks
from flowcache_core.parallel.shape import MeshShape, mesh_from_text
from flowcache_core.report.events import AttentionDensity, RunStarted, StepTaken

Work = Callable[[Mesh, Sequence[MeshShape], Path], None]


def inputs(settings):
    noise = drawn(1, 16, settings.plan.frames, SIDE, SIDE, seed=7)
    given = settings.plan.prefix_frames
    return noise, drawn(1, 16, given, SIDE, SIDE, seed=8) if given else None


def equal(mesh: Mesh, shapes: Sequence[MeshShape], folder: Path) -> None:
    """Every case on ranks in every shape, and on rank 0 by itself; then what is refused, which ends nothing."""
    found, names = {str(shape): {} for shape in shapes}, os.environ["RANK_CASES"].split(",")
    meshes = [mesh, *(arranged(shape, mesh.rank, mesh.device, mesh.timeout) for shape in shapes[1:])]
    for name, case in cases().items():
        fitting = [one for one in meshes if str(one.shape) in case.shapes]
        if names != [""] and name not in names or not fitting:
            continue
        noise, prefix = inputs(case.settings)
        alone: list[object] = []
        expected = (
            generate(case.denoiser, case.settings, noise, prefix=prefix, observe=alone.append)
            if mesh.rank == 0
            else noise
        )
        for one in fitting:
            events, before = [], one.traffic.total
            latents = generate_on_ranks(one, case.denoiser, case.settings, noise, prefix=prefix, observe=events.append)
            if mesh.rank == 0:
                sent = one.traffic.total - before
                found[str(one.shape)][name] = compared(latents, expected, events, alone) | {"sent": sent}
    if mesh.rank == 0:
        (folder / "found.json").write_text(json.dumps(found))
    said = {str(one.shape): {name: refused(one, name) for name in refusals(one.shape)} for one in meshes}
    (folder / f"refused{mesh.rank}.json").write_text(json.dumps(said))


def compared(latents, expected, events, alone) -> dict[str, object]:
    steps = [[e.action for e in run if isinstance(e, StepTaken)] for run in (events, alone)]
    started = [next(e for e in run if isinstance(e, RunStarted)) for run in (events, alone)]
    return {
        "difference": (latents - expected).abs().max().item(),
        "size": expected.abs().max().item(),
        "same decisions": steps[0] == steps[1] and started[0].notes == started[1].notes,
        "reused": steps[0].count("reuse"),
        "parts": steps[0].count("part"),
        "kv": [one.kv_bytes for one in started],
        "density": min((e.density for e in alone if isinstance(e, AttentionDensity)), default=1.0),
        "served": sum(e.masks_served for e in alone if isinstance(e, AttentionDensity)),
    }


def refused(mesh: Mesh, name: str) -> str:
    case = refusals(mesh.shape)[name]
    denoiser, engine, off = case.of_rank(mesh.rank)
    try:
        generate_on_ranks(mesh, denoiser, engine, inputs(engine)[0] + off)
    except SettingError as error:
        return str(error)
    return ""


def failing(how: Callable[[], None], *, on: Sequence[int] = (1,)) -> Work:
    """Some ranks do ``how`` after the first step, all at once; the last has said when."""

    def work(mesh: Mesh, shapes: Sequence[MeshShape], folder: Path) -> None:
        done: list[int] = []

        def observe(event: object) -> None:
            if isinstance(event, StepTaken) and mesh.rank in on and not done:
                done.append(1)
                (folder / f"here{mesh.rank}").touch()
                while not all((folder / f"here{rank}").exists() for rank in on):
                    time.sleep(0.02)
                (folder / "at").write_text(str(time.time()))
                how()

        generate_on_ranks(mesh, wan(), settings(), inputs(settings())[0], observe=observe)

    return work


def broken() -> None:
    raise ZeroDivisionError("a fault on this rank")


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def let_nobody_run() -> None:
    """A call that never returns and keeps all other threads of Python from running."""
    ctypes.PyDLL(None).sleep(600)


BUSY = 9.0  # seconds


def count() -> None:
    until = time.monotonic() + BUSY
    while time.monotonic() < until:
        sum(range(1000))


def multiply() -> None:
    """Calls of a second or so each: whole numbers have no fast product."""
    until, x = time.monotonic() + BUSY, torch.ones(1200, 1200, dtype=torch.int64)
    while time.monotonic() < until:
        x = x @ x


def other_version(mesh: Mesh, shapes: Sequence[MeshShape], folder: Path) -> None:
    """Rank 1 comes from another state of the sources."""
    (folder / "at").write_text(str(time.time()))
    if mesh.rank == 1:
        run.sources = lambda: "another"
    generate_on_ranks(mesh, wan(), settings(), inputs(settings())[0])


WORK: dict[str, Work] = {
    "equal": equal,
    "dies": failing(lambda: os.kill(os.getpid(), 9)),
    "hangs": failing(lambda: time.sleep(600)),
    "stops": failing(stop),
    "fails": failing(broken),
    "all stop": failing(stop, on=(0, 1)),
    "none run": failing(let_nobody_run, on=(0, 1)),
    "count": failing(count, on=(0, 1)),
    "other version": other_version,
    "multiply": failing(multiply, on=(0, 1)),
}


def wait_for_others(folder: Path, count: int) -> None:
    """Importing takes as long as the machine is busy; the timeout that is tried here counts from when all are there."""
    (folder / f"pid{os.environ['RANK']}").write_text(str(os.getpid()))
    while not all((folder / f"pid{rank}").exists() for rank in range(count)):
        time.sleep(0.02)


def main() -> int:
    what, meshes, folder, timeout = sys.argv[1:]
    shapes = [mesh_from_text(mesh) for mesh in meshes.split(",")]
    torch.set_num_threads(1)
    wait_for_others(Path(folder), shapes[0].size)
    with joined(shapes[0], timeout=float(timeout)) as joint:
        WORK[what](joint, shapes, Path(folder))
    return 0


if __name__ == "__main__":
    raise SystemExit(as_rank(main))
