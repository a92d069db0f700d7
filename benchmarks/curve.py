"""Quality against compute for every method, on the same model, plans, prompts and seeds.

    python dev.py bench curve            the blockwise setup of docs/figures.md, all methods
    python -m benchmarks.curve --setup staggered --pairs 8 --methods ours,teacache

Rows are saved as they are made; a second call goes on where the first stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from flowcache_core.calibrate.bundled import PROMPTS
from flowcache_core.calibrate.runs import Pair, Setup, paired
from flowcache_core.calibrate.tables import FORECAST
from flowcache_core.commands.arguments import Parser
from flowcache_core.commands.calibrate import shipped_name
from flowcache_core.denoiser import ChunkInput, ChunkOutput
from flowcache_core.engine import generate
from flowcache_core.errors import require_count
from flowcache_core.kv.cache import KVCache
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.presets import load_preset, model_file
from flowcache_core.report.refusing import refusing
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.distance import LatentDistance, PatchDistance, TimeDistance
from flowcache_core.reuse.easycache import EasyCache
from flowcache_core.reuse.forecast import Offset, Taylor
from flowcache_core.reuse.interval import Interval
from flowcache_core.reuse.magcache import MagCache
from flowcache_core.reuse.quantity import Residual, Velocity
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.reuse.teacache import TeaCache
from flowcache_core.rows import Rows
from flowcache_core.solvers.euler import Euler
from flowcache_core.solvers.unipc import UniPC

from .mini_runs import Comparison, Method, Row, mini, pairs, specimen
from .results import save, save_picture, stored

SETUPS: dict[str, tuple[Setup, dict[str, Any]]] = {
    "blockwise": (Setup(chunks=4), {}),
    "staggered": (Setup("staggered", chunks=4), {}),
    "unipc": (Setup(chunks=4, solver=UniPC()), {}),
    "guidance 1": (Setup(chunks=4, guidance=1.0), {}),
    "20 steps": (Setup(chunks=4, steps=20), {}),
    "compressed": (Setup(chunks=6), {"kv": KVSettings(budget=2.0)}),
}
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
SHIPPED = ("fast", "balanced", "slow")


def magnitude_curve(setup: Setup, batch: Sequence[Pair]) -> tuple[float, ...]:
    """MagCache's offline curve on this model: mean |r_t| / |r_(t-1)| of the residual, from one uncached run."""
    model = mini()
    norms: list[float] = []

    class Measuring(WanDenoiser):
        def compute(
            self, item: ChunkInput, cache: KVCache, *, keep_residual: bool = False, rows: Rows | None = None
        ) -> ChunkOutput:
            output = super().compute(item, cache, keep_residual=True, rows=rows)
            if item.step < setup.steps and output.residual is not None:  # not the clean pass
                norms.append(output.residual.float().norm(dim=-1).mean().item())
            return output

    one = replace(setup, chunks=1)
    prompt = torch.cat([model.encode_prompt(text) for text, _ in batch])
    denoiser = Measuring(model.transformer, {0: (prompt, model.encode_prompt("").expand_as(prompt))}, setup.guidance)
    noise = torch.cat([model.noise(1, seed) for _, seed in batch])
    generate(denoiser, specimen().settings(one), noise, observe=refusing())
    return (1.0, *(b / a for a, b in zip(norms, norms[1:], strict=False)))


def methods(setup: Setup, calibration: Sequence[Pair]) -> Iterator[Method]:
    """Every method at six settings or more; ours first."""
    steps = setup.steps
    for name in SHIPPED:
        preset, _ = load_preset("mini", shipped_name(name, steps)).fit(steps, mini().shift)
        yield Method("ours (shipped)", name, {"policy": preset.policy, "quantity": preset.quantity})
    for share, tables in calibrated_tables(steps):
        yield Method("ours (calibrated)", f"{share:.0%}", {"policy": tables, "quantity": FORECAST})
    warm = min(5, max(1, steps // 5))
    for interval in (2, 3, 4, 5, 6, 8):
        fixed = Interval(interval=interval, warmup_steps=2)
        yield Method("fixed interval, velocity", str(interval), {"policy": fixed, "quantity": Velocity()})
        for order in (1, 2):
            yield Method(f"fixed interval, taylor {order}", str(interval), {"policy": fixed, "quantity": Taylor(order)})
    for share in SHARES:
        fewer = max(2, round(share * steps))
        yield Method("fewer steps, euler", str(fewer), setup=replace(setup, steps=fewer, solver=Euler()))
        yield Method("fewer steps, unipc", str(fewer), setup=replace(setup, steps=fewer, solver=UniPC()))
    curve = magnitude_curve(setup, calibration)
    for threshold, cap in ((0.03, 2), (0.06, 3), (0.12, 4), (0.24, 6), (0.5, 8), (1.0, 12)):
        policy = MagCache(threshold=threshold, max_reuses=cap, curve=curve, warmup_steps=warm)
        yield Method("magcache", f"{threshold:g}/{cap}", {"policy": policy, "quantity": Residual()})
    for threshold in (0.02, 0.05, 0.07, 0.1, 0.2, 0.4):
        time = TimeDistance()
        teacache = TeaCache(threshold=threshold, warmup_steps=warm, distance=time)
        yield Method("teacache, time", f"{threshold:g}", {"policy": teacache, "quantity": Residual()})
    for threshold in (0.03, 0.05, 0.08, 0.12, 0.2, 0.3):
        eq8 = Chunkwise(threshold=threshold, warmup_steps=warm, distance=LatentDistance())
        yield Method("chunkwise (Eq. 8), latent", f"{threshold:g}", {"policy": eq8, "quantity": Velocity()})
        patch = replace(eq8, distance=PatchDistance())
        yield Method("chunkwise (Eq. 8), patch", f"{threshold:g}", {"policy": patch, "quantity": Residual()})
        easy = EasyCache(threshold=threshold, warmup_steps=warm)
        yield Method("easycache", f"{threshold:g}", {"policy": easy, "quantity": Offset()})


def calibrated_tables(steps: int) -> list[tuple[float, StaticSchedule]]:
    """Share and tables of every point on the shipped presets' calibration curve."""
    row = model_file("mini")["presets"][shipped_name(SHIPPED[0], steps)]
    curve = row["evidence"]["curve"]
    return [
        (p["share"], StaticSchedule(computed=tuple(p["computed"]), first=tuple(p["first"]), together=True))
        for p in curve
    ]


def at_shares(rows: Sequence[dict[str, Any]], column: str, shares: Sequence[float] = SHARES) -> dict[str, list[float]]:
    """Every method's figure at the same shares of computed steps, on straight lines between what was measured.

    nan where a method was not measured on both sides.
    """
    found: dict[str, list[float]] = {}
    for name in dict.fromkeys(row["method"] for row in rows):
        points = sorted((row["computed"], row[column]) for row in rows if row["method"] == name)
        x, y = zip(*points, strict=True)
        found[name] = [float(np.interp(s, x, y, left=np.nan, right=np.nan)) for s in shares]
    return found


def at_shares_text(rows: Sequence[dict[str, Any]]) -> str:
    """Median and 10th percentile of every method at equal shares."""
    median, low = at_shares(rows, "psnr"), at_shares(rows, "psnr_p10")
    lines = [f"{'PSNR (10th percentile) at computed share':42}" + "".join(f"{share:>13.0%}" for share in SHARES)]
    for name, values in sorted(median.items(), key=lambda one: -np.nan_to_num(one[1][1])):
        cells = [f"{m:6.1f} ({p:4.1f})" if m == m else "-" for m, p in zip(values, low[name], strict=True)]
        lines.append(f"{name:42}" + "".join(f"{cell:>13}" for cell in cells))
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], title: str, name: str) -> Path:
    """PSNR over computed share, one line a method, as ``results/<name>.png``."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["method"] for row in rows):
        points = sorted((row["computed"], row["psnr"]) for row in rows if row["method"] == name)
        ours = name.startswith("ours")
        style: dict[str, Any] = {"linewidth": 2.6, "zorder": 3} if ours else {"linewidth": 1.2, "alpha": 0.85}
        marker = "*" if name == "ours (shipped)" else "o"
        axes.plot(*zip(*points, strict=True), marker=marker, markersize=12 if marker == "*" else 4, label=name, **style)
    axes.set_xlabel("share of the steps computed")
    axes.set_ylabel("PSNR against the uncached run, dB (median)")
    axes.set_title(title)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    return save_picture(name, partial(figure.savefig, format="png", dpi=120))


def main(argv: Sequence[str]) -> int:
    """Print the table, save it, and draw the curve."""
    p = Parser("curve", description=__doc__)
    p.add_argument("--setup", default="blockwise", choices=list(SETUPS))
    p.add_argument("--pairs", type=int, default=16)
    p.add_argument("--methods", help="comma-separated beginnings of method names")
    options = p.parse_args(argv)
    require_count("pairs", options.pairs, minimum=1, maximum=100)
    setup, base = SETUPS[options.setup]
    name = f"curve-{options.setup.replace(' ', '-')}"
    figures = stored(name)
    rows: list[dict[str, Any]] = figures.get("rows", []) if figures.get("pairs") == options.pairs else []
    done = {(row["method"], row["point"]) for row in rows}
    wanted = tuple(options.methods.split(",")) if options.methods else ("",)
    comparison = Comparison(setup, pairs(1000, options.pairs), **base)
    print(Row.HEADER)
    for method in methods(setup, paired(PROMPTS, 5000, 4)):
        if (method.name, method.point) in done or not method.name.startswith(wanted):
            continue
        row = comparison.row(f"{method.name} {method.point}", setup=method.setup, **method.changes)
        print(row, flush=True)
        rows.append({"method": method.name, "point": method.point, **asdict(row)})
        save(name, {"setup": options.setup, "pairs": options.pairs, "rows": rows})
    print(f"\n{at_shares_text(rows)}\n")
    path = draw(rows, f"{options.setup}, {setup.steps} steps, guidance {setup.guidance:g}", name)
    print(f"saved: {path.with_suffix('')}.json, .png")
    return 0


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
