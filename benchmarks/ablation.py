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
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

from flowcache_core.calibrate.runs import Pair, Setup, videos
from flowcache_core.kv.importance_redundancy import ImportanceRedundancy
from flowcache_core.kv.settings import KVSettings
from flowcache_core.report.quality import compare
from flowcache_core.report.record import RunRecord
from flowcache_core.reuse.base import ReusePolicy
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.distance import LatentDistance
from flowcache_core.reuse.teacache import TeaCache

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


class Table:
    """Rows of one plan against its run without cache. ``pictures``: the first pair's video by row."""

    def __init__(self, setup: Setup, pairs: Sequence[Pair]) -> None:
        self.setup, self.pairs = setup, pairs
        self.perceptual = lpips.distance()
        self.full = [run(setup, [pair]) for pair in pairs]
        self.reference = [videos(specimen(), latents)[0] for _, latents in self.full]
        self.pictures: dict[str, Tensor] = {}
        self.rows: list[Row] = []

    def no_cache(self, name: str) -> None:
        self.add(name, [record for record, _ in self.full], self.reference)

    def measure(self, name: str, setup: Setup | None = None, **changes: Any) -> None:
        runs = [run(setup or self.setup, [pair], **changes) for pair in self.pairs]
        self.add(name, [record for record, _ in runs], [videos(specimen(), latents)[0] for _, latents in runs])

    def add(self, name: str, records: Sequence[RunRecord], made: Sequence[Tensor]) -> None:
        qualities = [compare(video, reference) for video, reference in zip(made, self.reference, strict=True)]
        full = [record for record, _ in self.full]
        row = Row(
            name=name,
            computed=statistics.median(r.computed_steps / f.total_steps for r, f in zip(records, full, strict=True)),
            flops=statistics.median((r.flops or 0.0) / (f.flops or 1.0) for r, f in zip(records, full, strict=True)),
            seconds=statistics.median(record.seconds or 0.0 for record in records),
            kv_mb=max(record.kv_bytes for record in records) / 1e6,
            psnr=statistics.median(quality.psnr for quality in qualities),
            ssim=statistics.median(quality.ssim for quality in qualities),
            lpips=None
            if self.perceptual is None
            else statistics.median(self.perceptual(v, r) for v, r in zip(made, self.reference, strict=True)),
        )
        self.rows.append(row)
        self.pictures[name] = made[0]
        print(row, flush=True)


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


def table_2(setup: Setup, pairs: Sequence[Pair], share: float) -> Table:
    """Reuse strategy and compression."""
    table = Table(setup, pairs)
    table.no_cache("no cache (causal, every step computed)")
    fewer = max(2, round(share * setup.steps))
    table.measure(f"fewer steps ({fewer} of {setup.steps}), no cache", Setup(setup.name, setup.chunks, fewer))
    teacache = at_share(TeaCache, setup, pairs[0], share)
    table.measure(f"TeaCache, threshold {teacache.threshold:.3f}", policy=teacache)  # type: ignore[attr-defined]
    chunkwise = at_share(Chunkwise, setup, pairs[0], share)
    table.measure(f"chunkwise, threshold {chunkwise.threshold:.3f}", policy=chunkwise)  # type: ignore[attr-defined]
    active = table.full[0][0]
    history = setup.chunks - max_active(active)
    budget = max(1.0, history / 2)
    kv = KVSettings(budget=budget)
    table.measure(f"chunkwise + compression, budget {budget:g} of {history}", policy=chunkwise, kv=kv)
    return table


def table_5_and_6(setup: Setup, pairs: Sequence[Pair]) -> tuple[Table, list[Row], list[Row]]:
    """The mix lambda at a budget of half the history, and budgets at lambda 0.07."""
    table = Table(setup, pairs)
    table.no_cache(f"no compression ({setup.chunks} chunks)")
    half = (setup.chunks - 1) / 2
    for mix in LAMBDAS:
        kv = KVSettings(budget=half, compressor=ImportanceRedundancy(mix_lambda=mix))
        table.measure(f"lambda {mix:.2f}, budget {half:g} of {setup.chunks - 1}", kv=kv)
    lambdas = list(table.rows)
    for total in TOTAL_BUDGETS:
        kept = total - 1
        table.measure(f"budget {total} of {setup.chunks} chunks, one of them active", kv=KVSettings(budget=float(kept)))
    return table, lambdas, [table.rows[0], *table.rows[len(lambdas) :]]


def max_active(record: RunRecord) -> int:
    """The most chunks that were begun and not finished at the same tick."""
    ticks: dict[int, set[int]] = {}
    for step in record.steps_taken:
        ticks.setdefault(step.tick, set()).add(step.chunk)
    return max(len(chunks) for chunks in ticks.values())


def main(argv: Sequence[str]) -> int:
    """Print the tables, save them and a picture of the first pair's videos."""
    run(Setup(chunks=1, steps=2), PAIRS[:1])  # so that no row pays for what torch does on its first calls
    print(f"table 2: staggered plan, {len(PAIRS)} pairs\n{Row.HEADER}", flush=True)
    reuse = table_2(replace(LONG, name="staggered"), PAIRS, FAST_SHARE)
    print(f"\ntables 5 and 6: blockwise plan, {len(PAIRS)} pairs, no reuse\n{Row.HEADER}", flush=True)
    compression, lambdas, budgets = table_5_and_6(LONG, PAIRS)
    if reuse.perceptual is None:
        print(f"\nLPIPS left out: {lpips.BACKBONE} is not on this machine, and nothing is downloaded for it")
    named: dict[str, Any] = {"table_2": reuse.rows, "table_5": lambdas, "table_6": budgets}
    figures = {name: [asdict(row) for row in rows] for name, rows in named.items()}
    print(f"\nsaved: {save('ablation', {'pairs': [list(pair) for pair in PAIRS], **figures})}")
    for name, table in (("ablation-reuse", reuse), ("ablation-compression", compression)):
        sheet = contact_sheet(table.pictures)
        print(f"saved: {save_picture(name, partial(sheet.save, format='PNG', optimize=True))}")
    return 0
