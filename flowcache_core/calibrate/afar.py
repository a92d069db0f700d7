"""Schedules measured by workers: a task is one schedule on one video."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from ..report.quality import compare
from ..reuse.build import build_policy
from ..reuse.forecast import Forecast
from ..reuse.never import Never
from ..solvers import SOLVERS
from ..sweep.kept import Kept
from ..sweep.task import Task
from ..sweep.workers import Workers, swept
from .runs import Pair, Setup, Specimen, generated, videos
from .tables import Proposal

Measurement = tuple[list[float], float]
"""PSNR of every pair, and seconds of a chunk."""


@dataclass(frozen=True)
class Afar:
    """workers, and the model as they find it: its name and files (``bundled`` ones have none)."""

    workers: Workers
    model: str
    files: Mapping[str, Any]

    def measure(
        self, proposals: Mapping[str, Proposal], setup: Setup, batch: Sequence[Pair], kept: Kept
    ) -> Iterator[tuple[str, Measurement]]:
        """Every proposal under its name, as soon as all of its videos have been measured."""
        run = {**asdict(setup), "solver": setup.solver.name}
        common = {"model": self.model, "files": dict(self.files), "setup": run}
        owners, tasks = {}, []
        for name, proposal in proposals.items():
            policy, forecast = proposal.policy, asdict(proposal.forecast)
            fields = {"name": policy.name, **{key: listed(value) for key, value in asdict(policy).items()}}
            for pair in batch:
                task = Task(f"{name} seed {pair[1]}", f"{__name__}:measured", {
                    **common, "policy": fields, "forecast": forecast, "pair": list(pair)
                })  # fmt: skip
                tasks.append(task)
                owners[task.name] = name
        found: dict[str, dict[str, Any]] = {name: {} for name in proposals}
        for task, value in swept(tasks, self.workers, kept):
            own = found[owners[task.name]]
            own[task.name] = value
            if len(own) == len(batch):
                name = owners[task.name]
                rows = [own[f"{name} seed {seed}"] for _, seed in batch]
                yield name, ([psnr for psnr, _ in rows], fmean(seconds for _, seconds in rows))


def listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def measured(
    model: str,
    files: dict[str, Any],
    setup: dict[str, Any],
    policy: dict[str, Any],
    forecast: dict[str, Any],
    pair: list[Any],
) -> tuple[float, float]:
    """A task: PSNR of one video under a proposal against the uncached one, and seconds of one of its chunks."""
    of = specimen(model, tuple(sorted(files.items())))
    run = Setup(**{**setup, "solver": SOLVERS[setup["solver"]]()})
    one: Pair = (pair[0], pair[1])
    begun = time.perf_counter()
    latents = generated(of, run, [one], policy=build_policy(policy), quantity=Forecast(**forecast))
    seconds = (time.perf_counter() - begun) / run.chunks
    (video,) = videos(of, latents)
    return compare(video, uncached(of, run, one)).psnr, seconds


@lru_cache(maxsize=2)
def specimen(model: str, files: tuple[tuple[str, Any], ...]) -> Specimen:
    """The model, read once by every worker."""
    from .bundled import BUNDLED
    from .weights import RELEASED, Files

    if not files:
        return BUNDLED[model]()
    given: dict[str, Any] = {
        key: Path(value) if key in ("weights", "prompts", "vae") and value else value for key, value in files
    }
    return RELEASED[model](Files(**given))


@lru_cache(maxsize=64)
def uncached(of: Specimen, setup: Setup, pair: Pair) -> Tensor:
    (video,) = videos(of, generated(of, setup, [pair], policy=Never()))
    return video
