"""Who does the tasks of a sweep: this process, workers that are started for it on this machine, or a Ray cluster."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import require, require_count
from .kept import Kept
from .task import Task, perform, sources

MOST_WORKERS = 1024
INSTALL = "Ray: pip install ray (the extra `distributed`)"


@dataclass(frozen=True)
class Workers:
    """count: processes on this machine, 1 for none beside this one. address: of a Ray cluster that runs already."""

    count: int = 1
    address: str | None = None

    @property
    def here(self) -> bool:
        """Whether this process does everything; Ray is not needed then."""
        return self.count == 1 and self.address is None


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("workers", "who makes the videos (docs/distributed.md)")
    group.add_argument("--workers", type=int, help="processes on this machine; more than 1 need Ray (default: 1)")
    group.add_argument("--ray", metavar="ADDRESS", help="a Ray cluster that runs already: HOST:PORT, or auto")


def workers_of(options: argparse.Namespace) -> Workers | None:
    """Who was asked for, None where nobody was. SettingError for what cannot work, before any work is done."""
    if options.workers is None and options.ray is None:
        return None
    require(options.workers is None or options.ray is None, "workers", options.workers, "--workers or --ray, not both")
    if options.workers is not None:
        require_count("workers", options.workers, minimum=1, maximum=MOST_WORKERS)
    found = Workers(options.workers or 1, options.ray)
    if not found.here:
        field, value = ("workers", found.count) if found.address is None else ("ray", found.address)
        require(importlib.util.find_spec("ray") is not None, field, value, f"1 worker, or {INSTALL}")
    if found.address is not None:
        from .on_ray import require_answer

        require_answer(found.address)
    return found


@contextmanager
def ready(workers: Workers | None) -> Iterator[None]:
    """Several sweeps within take the same workers; without, each starts its own."""
    if workers is None or workers.here:
        yield
        return
    from .on_ray import cluster

    with cluster(workers):
        yield


def landed(tasks: Sequence[Task], workers: Workers) -> Iterator[tuple[Task, Any]]:
    """Every task with its result, in the order in which they are done. A task's own error ends the sweep."""
    if workers.here:
        for task in tasks:
            yield task, perform(task.work, task.arguments)
        return
    from .on_ray import landed_on_ray

    yield from landed_on_ray(tasks, workers)


def swept(tasks: Sequence[Task], workers: Workers, kept: Kept) -> Iterator[tuple[Task, Any]]:
    """As :func:`landed`, and every result is kept as it comes; what is known already comes first."""
    for task in tasks:
        if task.name in kept.values:
            yield task, kept.values[task.name]
    for task, value in landed([task for task in tasks if task.name not in kept.values], workers):
        kept.put(task.name, value)
        yield task, value


def kept_for(name: str, about: Mapping[str, Any]) -> Kept:
    """Where the results of a sweep with these settings stay: ``out/sweeps``, for this version of the sources."""
    settings = {**about, "sources": sources()}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return Kept(Path("out") / "sweeps" / f"{name}-{digest}.json", settings)
