"""The paper's ablations (arXiv 2602.10825, tables 2, 5 and 6) on the mini model.

    python dev.py bench ablation

Every row is measured against the run without any cache: block-causal on K/V, every step computed. Table 2 uses the
staggered plan, where several chunks are active and one decision for all (TeaCache) differs from one per chunk; both
thresholds are set so that as large a share is computed as in the paper's fast variant. Tables 5 and 6 use the
blockwise plan without reuse, as the paper does. Pairs run one by one, so that seconds compare.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache, partial
from typing import Any

from torch import Tensor

from flowcache_core.calibrate.runs import Pair, Setup, videos
from flowcache_core.commands.arguments import Parser
from flowcache_core.kv.importance_redundancy import ImportanceRedundancy
from flowcache_core.kv.settings import KVSettings
from flowcache_core.report.quality import compare
from flowcache_core.report.record import RunRecord
from flowcache_core.reuse.base import ReusePolicy
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.distance import LatentDistance
from flowcache_core.reuse.teacache import TeaCache
from flowcache_core.sweep.task import Task, perform
from flowcache_core.sweep.workers import Workers, add_worker_arguments, kept_for, ready, swept, workers_of

from . import lpips
from .contact_sheet import contact_sheet
from .mini_runs import HELD_OUT, LONG, run, specimen
from .results import save, save_picture

PAIRS = HELD_OUT[:4]
FAST_SHARE = 18 / 50  # computed steps of the paper's fast variant on SkyReels-V2
LAMBDAS = (0.03, 0.07, 0.15, 0.20)
TOTAL_BUDGETS = (7, 6, 5)  # chunks of K/V in all, the active one included; the video has 8
HALVINGS = 7  # of the thresholds' range on a logarithmic scale: within 4 %


@dataclass(frozen=True)
class Row:
    """Medians over the pairs. computed, flops: shares of the run without cache; seconds of one video, not decoded."""

    name: str
    computed: float
    flops: float
    seconds: float
    kv_mb: float
    psnr: float
    ssim: float
    lpips: float | None

    HEADER = f"{'':46} {'computed':>8} {'FLOPs':>6} {'seconds':>7} {'K/V MB':>7} {'PSNR':>6} {'SSIM':>6} {'LPIPS':>6}"

    def __str__(self) -> str:
        perceptual = "-" if self.lpips is None else f"{self.lpips:.3f}"
        return (
            f"{self.name:46} {self.computed:8.1%} {self.flops:6.1%} {self.seconds:7.2f} {self.kv_mb:7.2f} "
            f"{self.psnr:6.2f} {self.ssim:6.3f} {perceptual:>6}"
        )


@dataclass(frozen=True)
class Line:
    """What one row of a table runs: ``changes`` of the engine's settings (none: without any cache), another setup."""

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    setup: Setup | None = None


class Uncached:
    """One pair's run without cache, and other runs of the pair against it."""

    def __init__(self, setup: Setup, pair: Pair) -> None:
        self.setup, self.pair = setup, pair
        self.full, latents = run(setup, [pair])
        (self.reference,) = videos(specimen(), latents)

    def measure(self, line: Line) -> tuple[Row, Tensor]:
        """The row of this pair alone, and its video."""
        if not line.changes and line.setup is None:
            return self.row(line.name, self.full, self.reference), self.reference
        record, latents = run(line.setup or self.setup, [self.pair], **line.changes)
        (video,) = videos(specimen(), latents)
        return self.row(line.name, record, video), video

    def row(self, name: str, record: RunRecord, video: Tensor) -> Row:
        quality, perceptual = compare(video, self.reference), perceptual_distance()
        return Row(
            name=name,
            computed=record.computed_steps / self.full.total_steps,
            flops=(record.flops or 0.0) / (self.full.flops or 1.0),
            seconds=record.seconds or 0.0,
            kv_mb=record.kv_bytes / 1e6,
            psnr=quality.psnr,
            ssim=quality.ssim,
            lpips=None if perceptual is None else perceptual(video, self.reference),
        )


class Table:
    """Rows of one plan against its run without cache. ``pictures``: the first pair's video by row.

    The first pair runs here, for its pictures; the others where ``workers`` are.
    """

    def __init__(self, kind: str, known: Known, setup: Setup, pairs: Sequence[Pair], workers: Workers) -> None:
        self.kind, self.known, self.setup, self.pairs, self.workers = kind, known, setup, pairs, workers
        self.first = Uncached(setup, pairs[0])
        self.pictures: dict[str, Tensor] = {}
        self.rows: list[Row] = []

    def measure(self, lines: Sequence[Line]) -> None:
        """One row for each; workers do all pairs of all rows in any order."""
        where = {"kind": self.kind, "known": self.known, "setup": {**asdict(self.setup), "solver": None}}
        tasks = [
            Task(f"{line.name}, seed {pair[1]}", f"{__name__}:row_of", {**where, "line": line.name, "pair": list(pair)})
            for line in lines
            for pair in self.pairs[1:]
        ]
        kept = kept_for(f"ablation-{self.kind}", where)
        values: dict[str, Row] = {}
        if not self.workers.here:
            values = {task.name: Row(**value) for task, value in swept(tasks, self.workers, kept)}
        for line in lines:
            own, video = self.first.measure(line)
            self.pictures[line.name] = video
            # In this process after the first pair, row by row, so that seconds compare.
            wanted = [task for task in tasks if task.arguments["line"] == line.name]
            parts = [values.get(task.name) or Row(**perform(task.work, task.arguments)) for task in wanted]
            self.rows.append(merged(line.name, [own, *parts]))
            print(self.rows[-1], flush=True)


def merged(name: str, rows: Sequence[Row]) -> Row:
    """Medians over the pairs; of K/V the largest."""

    def middle(column: str) -> float:
        return statistics.median(getattr(row, column) for row in rows)

    return Row(
        name=name,
        computed=middle("computed"),
        flops=middle("flops"),
        seconds=middle("seconds"),
        kv_mb=max(row.kv_mb for row in rows),
        psnr=middle("psnr"),
        ssim=middle("ssim"),
        lpips=None if rows[0].lpips is None else middle("lpips"),
    )


Known = dict[str, float]
"""What is found out before a table: thresholds and the budget, by name."""


def row_of(kind: str, known: Known, setup: dict[str, Any], line: str, pair: Sequence[Any]) -> dict[str, Any]:
    """A task: one row of a table for one pair."""
    run_of = Setup(**{**setup, "solver": Setup().solver})
    (one,) = (each for each in LINES[kind](run_of, known) if each.name == line)
    row, _ = uncached(run_of, (pair[0], pair[1])).measure(one)
    return asdict(row)


@lru_cache(maxsize=16)
def uncached(setup: Setup, pair: Pair) -> Uncached:
    return Uncached(setup, pair)


@cache
def perceptual_distance() -> Callable[[Tensor, Tensor], float] | None:
    return lpips.distance()


def threshold_for(share: float, computed: Callable[[float], float], low: float = 0.005, high: float = 1.0) -> float:
    """The threshold at which ``computed(threshold)``, which falls, comes nearest to ``share``."""
    tried: dict[float, float] = {}
    for _ in range(HALVINGS):
        middle = math.sqrt(low * high)
        tried[middle] = computed(middle)
        low, high = (middle, high) if tried[middle] > share else (low, middle)
    return min(reversed(tried), key=lambda threshold: abs(tried[threshold] - share))


def at_share(kind: type[Chunkwise] | type[TeaCache], setup: Setup, pair: Pair, share: float) -> ReusePolicy:
    """A policy on latents whose threshold gives about that share of computed steps for one pair."""

    def policy(threshold: float) -> ReusePolicy:
        return kind(threshold=threshold, distance=LatentDistance())

    return policy(threshold_for(share, lambda t: run(setup, [pair], policy=policy(t))[0].computed_share))


def lines_2(setup: Setup, known: Known) -> list[Line]:
    """Reuse strategy and compression."""
    fewer = int(known["fewer steps"])
    at = LatentDistance()
    teacache, chunkwise = (kind(threshold=known[kind.name], distance=at) for kind in (TeaCache, Chunkwise))
    budget, history = known["budget"], known["history"]
    compressed = {"policy": chunkwise, "kv": KVSettings(budget=budget)}
    return [
        Line("no cache (causal, every step computed)"),
        Line(f"fewer steps ({fewer} of {setup.steps}), no cache", setup=Setup(setup.name, setup.chunks, fewer)),
        Line(f"TeaCache, threshold {teacache.threshold:.3f}", {"policy": teacache}),
        Line(f"chunkwise, threshold {chunkwise.threshold:.3f}", {"policy": chunkwise}),
        Line(f"chunkwise + compression, budget {budget:g} of {history:g}", compressed),
    ]


def lines_5_and_6(setup: Setup, known: Known) -> list[Line]:
    """The mix lambda at a budget of half the history, and budgets at lambda 0.07."""
    half, found = (setup.chunks - 1) / 2, [Line(f"no compression ({setup.chunks} chunks)")]
    for mix in LAMBDAS:
        kv = KVSettings(budget=half, compressor=ImportanceRedundancy(mix_lambda=mix))
        found.append(Line(f"lambda {mix:.2f}, budget {half:g} of {setup.chunks - 1}", {"kv": kv}))
    for total in TOTAL_BUDGETS:
        name = f"budget {total} of {setup.chunks} chunks, one of them active"
        found.append(Line(name, {"kv": KVSettings(budget=float(total - 1))}))
    return found


LINES: dict[str, Callable[[Setup, Known], list[Line]]] = {"2": lines_2, "5-6": lines_5_and_6}


def known_for_2(setup: Setup, pair: Pair, share: float) -> Known:
    """Thresholds at which the first pair computes ``share`` of its steps, and half of the history."""
    thresholds = {kind.name: at_share(kind, setup, pair, share).threshold for kind in (TeaCache, Chunkwise)}  # type: ignore[attr-defined]
    history = setup.chunks - max_active(run(setup, [pair])[0])
    fewer = max(2, round(share * setup.steps))
    return {**thresholds, "history": history, "budget": max(1.0, history / 2), "fewer steps": fewer}


def table_2(setup: Setup, pairs: Sequence[Pair], share: float, workers: Workers) -> Table:
    known = known_for_2(setup, pairs[0], share)
    table = Table("2", known, setup, pairs, workers)
    table.measure(lines_2(setup, known))
    return table


def table_5_and_6(setup: Setup, pairs: Sequence[Pair], workers: Workers) -> tuple[Table, list[Row], list[Row]]:
    table = Table("5-6", {}, setup, pairs, workers)
    table.measure(lines_5_and_6(setup, {}))
    first = 1 + len(LAMBDAS)
    return table, table.rows[:first], [table.rows[0], *table.rows[first:]]


def max_active(record: RunRecord) -> int:
    """The most chunks that were begun and not finished at the same tick."""
    ticks: dict[int, set[int]] = {}
    for step in record.steps_taken:
        ticks.setdefault(step.tick, set()).add(step.chunk)
    return max(len(chunks) for chunks in ticks.values())


def main(argv: Sequence[str]) -> int:
    """Print the tables, save them and a picture of the first pair's videos."""
    p = Parser("ablation", description=__doc__)
    add_worker_arguments(p)
    workers = workers_of(p.parse_args(argv)) or Workers()
    with ready(workers):
        return tables(workers)


def tables(workers: Workers) -> int:
    if not workers.here:
        print("seconds are of workers side by side: they say less than those of one process")
    run(Setup(chunks=1, steps=2), PAIRS[:1])  # so that no row pays for what torch does on its first calls
    print(f"table 2: staggered plan, {len(PAIRS)} pairs\n{Row.HEADER}", flush=True)
    reuse = table_2(replace(LONG, name="staggered"), PAIRS, FAST_SHARE, workers)
    print(f"\ntables 5 and 6: blockwise plan, {len(PAIRS)} pairs, no reuse\n{Row.HEADER}", flush=True)
    compression, lambdas, budgets = table_5_and_6(LONG, PAIRS, workers)
    if perceptual_distance() is None:
        print(f"\nLPIPS left out: {lpips.BACKBONE} is not on this machine, and nothing is downloaded for it")
    named: dict[str, Any] = {"table_2": reuse.rows, "table_5": lambdas, "table_6": budgets}
    figures = {name: [asdict(row) for row in rows] for name, rows in named.items()}
    print(f"\nsaved: {save('ablation', {'pairs': [list(pair) for pair in PAIRS], **figures})}")
    for name, table in (("ablation-reuse", reuse), ("ablation-compression", compression)):
        sheet = contact_sheet(table.pictures)
        print(f"saved: {save_picture(name, partial(sheet.save, format='PNG', optimize=True))}")
    return 0
