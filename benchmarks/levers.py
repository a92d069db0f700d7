"""What each part of the shipped reuse is worth, what bounds it, and what its decisions cost.

Rows go from an even spread with the velocity repeated to the shipped preset. The oracle schedules each video by its own
velocities, which nobody knows before the run: the bound for schedules that look at content.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from flowcache_core.calibrate.gram import Watch, mean_gram
from flowcache_core.calibrate.search import best_schedules
from flowcache_core.calibrate.sensitivity import reach
from flowcache_core.denoiser import ChunkInput, Denoiser
from flowcache_core.presets import Preset, load_preset
from flowcache_core.report.record import RunRecord
from flowcache_core.reuse.base import Decision
from flowcache_core.reuse.forecast import Forecast
from flowcache_core.reuse.quantity import Quantity, Velocity
from flowcache_core.reuse.schedule import StaticSchedule, StaticScheduleState, spread
from flowcache_core.schedule import Schedule, shifted

from .mini_runs import HELD_OUT, Comparison, Row, Setup, mini, pairs, run, videos
from .results import save

PRESETS = ("fast", "balanced", "slow")
Changes = dict[str, Any]


def schedule_of(preset: Preset) -> StaticSchedule:
    assert isinstance(preset.policy, StaticSchedule)
    return preset.policy


def rows(preset: Preset) -> Iterator[tuple[str, Changes]]:
    """Every part added to the one before."""
    table = schedule_of(preset)
    assert isinstance(preset.quantity, Forecast)
    forecast = preset.quantity
    even = StaticSchedule(computed=spread(len(table.computed), 50, 1))
    steps: tuple[tuple[str, StaticSchedule, Quantity], ...] = (
        ("even, velocity", even, Velocity()),
        ("even, forecast", even, replace(forecast, correction=0)),
        ("even, corrected forecast", even, forecast),
        ("calibrated, velocity", table, Velocity()),
        ("calibrated, forecast", table, replace(forecast, correction=0)),
        ("calibrated, corrected forecast (shipped)", table, forecast),
    )
    for name, policy, quantity in steps:
        yield name, {"policy": policy, "quantity": quantity}


def reaches(setup: Setup) -> tuple[Sequence[float], Any]:
    """Noise levels, and how far an error reaches on videos that no row is measured on."""
    batch, watch = pairs(5000, 4), Watch()
    _, base = run(replace(setup, chunks=2), batch, policy=watch)
    sigmas = shifted(setup.steps, mini().shift).sigmas

    def decoded(computed: tuple[int, ...]) -> torch.Tensor:
        _, latents = run(replace(setup, chunks=2), batch, policy=StaticSchedule(computed=computed))
        return torch.stack(videos(latents)).float()

    return sigmas, reach(mean_gram(watch.grams).numpy(), sigmas, decoded, torch.stack(videos(base)).float(), probes=8)


def oracle(
    comparison: Comparison, counts: Sequence[int], forecast: Forecast
) -> dict[int, list[tuple[RunRecord, torch.Tensor]]]:
    """A run of every pair, scheduled by its own velocities; by number of computed steps."""
    sigmas, weights = reaches(comparison.setup)
    runs: dict[int, list[tuple[RunRecord, torch.Tensor]]] = {count: [] for count in counts}
    for pair in comparison.batch:
        watch = Watch()
        run(comparison.setup, [pair], policy=watch)
        found = best_schedules(
            mean_gram(watch.grams).numpy(), sigmas, forecast.order, weights, correction=forecast.correction
        )
        for count in counts:
            policy = StaticSchedule(computed=found[count].computed)
            runs[count].append(run(comparison.setup, [pair], policy=policy, quantity=forecast))
    return runs


@dataclass(frozen=True)
class Timed(StaticSchedule):
    """The static schedule with a clock on its decisions."""

    def begin(self, schedule: Schedule, denoiser: Denoiser) -> TimedState:
        return TimedState(schedule, self, frozenset(self.computed))


@dataclass
class TimedState(StaticScheduleState):
    seconds = 0.0

    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        begun = time.perf_counter()
        decisions = super().decide(items)
        TimedState.seconds += time.perf_counter() - begun
        return decisions


def decision_share(setup: Setup, preset: Preset) -> float:
    """Share of a run's time that the policy takes to decide."""
    TimedState.seconds = 0.0
    begun = time.perf_counter()
    run(setup, HELD_OUT[:1], policy=Timed(computed=schedule_of(preset).computed), quantity=preset.quantity)
    return TimedState.seconds / (time.perf_counter() - begun)


def main(argv: Sequence[str]) -> int:
    """Print and save the tables."""
    setup, figures = Setup(chunks=4), dict[str, Any]()
    presets = [load_preset("mini", name) for name in PRESETS]
    comparison = Comparison(setup, HELD_OUT)
    print(f"blockwise, {len(HELD_OUT)} held-out pairs\n{Row.HEADER}")
    table = []
    for preset in presets:
        for name, changes in rows(preset):
            table.append(comparison.row(f"{preset.name}: {name}", **changes))
            print(table[-1], flush=True)
    counts = [len(schedule_of(preset).computed) for preset in presets]
    best = oracle(comparison, counts, Forecast(1, correction=2))
    for preset, count in zip(presets, counts, strict=True):
        table.append(comparison.score(f"{preset.name}: oracle schedule", best[count]))
        print(table[-1], flush=True)
    figures["blockwise"] = [asdict(row) for row in table]

    staggered, beside = Comparison(replace(setup, name="staggered"), HELD_OUT[:8]), []
    print(f"\nstaggered, 8 held-out pairs\n{Row.HEADER}")
    for preset in presets:
        for together in (False, True):
            policy = replace(schedule_of(preset), together=together)
            name = f"{preset.name}: {'all chunks at the same ticks' if together else 'every chunk by its table'}"
            beside.append(staggered.row(name, policy=policy, quantity=preset.quantity))
            print(beside[-1], flush=True)
    figures["staggered"] = [asdict(row) for row in beside]

    share = max(decision_share(setup, preset) for preset in presets)
    print(f"\ndeciding takes {share:.3%} of a run at most")
    print(f"saved: {save('levers', {**figures, 'decision_share': share})}")
    return 0


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
