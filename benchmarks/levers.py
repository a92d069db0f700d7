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
from torch import Tensor

from flowcache_core.calibrate.bundled import PROMPTS
from flowcache_core.calibrate.record import Record
from flowcache_core.calibrate.runs import Setup, paired, videos
from flowcache_core.calibrate.tables import FORECAST, Split, even, measured_reach, searched
from flowcache_core.denoiser import ChunkInput, ChunkOutput, ModelView
from flowcache_core.kv.cache import KVCache
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.presets import Preset, load_preset
from flowcache_core.report.record import RunRecord
from flowcache_core.reuse.base import Decision, ReusePolicy
from flowcache_core.reuse.forecast import Forecast
from flowcache_core.reuse.quantity import Velocity
from flowcache_core.reuse.schedule import StaticSchedule, StaticScheduleState, spread
from flowcache_core.rows import Rows
from flowcache_core.schedule import Schedule

from .mini_runs import HELD_OUT, Comparison, Row, run, specimen
from .results import save

PRESETS = ("fast", "balanced", "slow")
Changes = dict[str, Any]


def schedule_of(preset: Preset) -> StaticSchedule:
    assert isinstance(preset.policy, StaticSchedule)
    return preset.policy


def rows(preset: Preset, setup: Setup) -> Iterator[tuple[str, Changes]]:
    """Every part added to the one before, all with as many computed steps; then what was tried and does not pay."""
    tables = schedule_of(preset)
    assert isinstance(preset.quantity, Forecast)
    forecast = preset.quantity
    way = Split(len(tables.first), len(tables.computed))
    total = way.first + (setup.chunks - 1) * way.later
    same = StaticSchedule(computed=spread(round(total / setup.chunks), setup.steps, 1))
    yield "even, velocity", {"policy": same, "quantity": Velocity()}
    yield "even, forecast", {"policy": same, "quantity": replace(forecast, correction=0)}
    yield "even, corrected forecast", {"policy": same, "quantity": forecast}
    yield "even, more in the first chunk", {"policy": even(way, setup.steps), "quantity": forecast}
    yield "shipped", {"policy": tables, "quantity": forecast}
    yield "shipped lists, velocity", {"policy": tables, "quantity": Velocity()}
    yield "shipped, order 2", {"policy": tables, "quantity": replace(forecast, order=2)}
    more = StaticSchedule(computed=spread(round(total / setup.chunks * 4 / 3), setup.steps, 1))
    guided = {"policy": more, "quantity": forecast, "kind": UncondBySecond}
    yield "even, 4/3 as many, uncond at every second", guided


class UncondBySecond(WanDenoiser):
    """Computes the uncond branch at every second computed step and repeats its distance from cond at the others.

    The branch is computed here all the same, to see what the quality would be: one that is left out costs half a step.
    """

    distance: Tensor
    computed = 0

    def compute(
        self, item: ChunkInput, cache: KVCache, *, keep_residual: bool = False, rows: Rows | None = None
    ) -> ChunkOutput:
        output = super().compute(item, cache, keep_residual=keep_residual, rows=rows)
        cond, uncond = output.velocity
        self.computed = 0 if item.step == 0 else self.computed + 1
        if self.computed % 2:
            return replace(output, velocity=torch.stack((cond, cond + self.distance)))
        self.distance = uncond - cond
        return output


def oracle(
    comparison: Comparison, ways: Sequence[Split], forecast: Forecast
) -> dict[Split, list[tuple[RunRecord, Tensor]]]:
    """A run of every pair, scheduled by its own velocities, by split."""
    setup = replace(comparison.setup, chunks=2)

    def video(policy: ReusePolicy) -> Tensor:
        return torch.stack(videos(specimen(), run(setup, paired(PROMPTS, 5000, 4), policy=policy)[1])).float()

    record = Record()
    reaches = measured_reach(video, record.grams, video(record))
    runs: dict[Split, list[tuple[RunRecord, Tensor]]] = {way: [] for way in ways}
    for pair in comparison.batch:
        own = Record()
        run(comparison.setup, [pair], policy=own)
        tables = searched(own.grams, reaches, forecast)
        for way in ways:
            runs[way].append(run(comparison.setup, [pair], policy=tables.policy(way), quantity=forecast))
    return runs


@dataclass(frozen=True)
class Timed(StaticSchedule):
    """The static schedule with a clock on its decisions."""

    def begin(self, schedule: Schedule, denoiser: ModelView) -> TimedState:
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
    run(setup, HELD_OUT[:1], policy=Timed(**asdict(schedule_of(preset))), quantity=preset.quantity)
    return TimedState.seconds / (time.perf_counter() - begun)


def main(argv: Sequence[str]) -> int:
    """Print and save the tables."""
    setup, figures = Setup(chunks=4), dict[str, Any]()
    presets = [load_preset("mini", name) for name in PRESETS]
    comparison = Comparison(setup, HELD_OUT)
    print(f"blockwise, {len(HELD_OUT)} held-out pairs\n{Row.HEADER}")
    table = []
    for preset in presets:
        for name, changes in rows(preset, setup):
            row = comparison.row(f"{preset.name}: {name}", **changes)
            half = changes.get("kind") is UncondBySecond  # three quarters of what is counted
            table.append(replace(row, computed=row.computed * 0.75, flops=row.flops * 0.75) if half else row)
            print(table[-1], flush=True)
    ways = [Split(len(schedule_of(preset).first), len(schedule_of(preset).computed)) for preset in presets]
    best = oracle(comparison, ways, FORECAST)
    for preset, way in zip(presets, ways, strict=True):
        table.append(comparison.score(f"{preset.name}: oracle schedule", best[way]))
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
