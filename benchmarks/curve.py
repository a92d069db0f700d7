"""Quality against compute for every method (methods.py), on the same model, plans, prompts and seeds.

    python dev.py bench curve                                        the mini model, blockwise, all methods
    python dev.py bench curve --model scenes                         mini scenes
    python dev.py bench curve --setup staggered --pairs 8 --methods ours,teacache

Beside PSNR stands how often the videos do what their prompts say (meaning.py). Rows are saved as they are made; a
second call goes on where the first stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flowcache_core.calibrate.runs import Setup, paired
from flowcache_core.commands.arguments import Parser
from flowcache_core.errors import require_count
from flowcache_core.kv.settings import KVSettings
from flowcache_core.solvers.unipc import UniPC

from .meaning import right
from .methods import SHARES, Subject, methods
from .mini_runs import MODELS, Comparison, Row, pairs, specimen
from .results import save, save_picture, stored

SETUPS: dict[str, tuple[Setup, dict[str, Any]]] = {
    "blockwise": (Setup(chunks=4), {}),
    "staggered": (Setup("staggered", chunks=4), {}),
    "unipc": (Setup(chunks=4, solver=UniPC()), {}),
    "guidance 1": (Setup(chunks=4, guidance=1.0), {}),
    "20 steps": (Setup(chunks=4, steps=20), {}),
    "compressed": (Setup(chunks=6), {"kv": KVSettings(budget=2.0)}),
}
PAIRS = {"mini": 16, "scenes": 6}
"""A run of mini scenes is four to eight times as dear, so there are fewer pairs and settings of each method."""


PARTS = ("ours, guidance at every second", "motioncache")
"""Methods whose computed steps are not all whole forwards."""


def cost(row: dict[str, Any]) -> float:
    """Share of the steps computed, or of the FLOPs where computed steps are not whole."""
    return float(row["flops"] if row["method"] in PARTS else row["computed"])


def place(row: dict[str, Any]) -> tuple[str, str]:
    return row["method"], row["point"]


def at_shares(rows: Sequence[dict[str, Any]], column: str, shares: Sequence[float] = SHARES) -> dict[str, list[float]]:
    """Every method's figure at the same shares of computed steps, on straight lines between what was measured.

    nan where a method was not measured on both sides.
    """
    found: dict[str, list[float]] = {}
    for name in dict.fromkeys(row["method"] for row in rows):
        points = sorted((cost(row), row[column]) for row in rows if row["method"] == name)
        x, y = zip(*points, strict=True)
        found[name] = [float(np.interp(s, x, y, left=np.nan, right=np.nan)) for s in shares]
    return found


def at_shares_text(rows: Sequence[dict[str, Any]]) -> str:
    """Median, 10th percentile and the share of right answers of every method at equal shares."""
    median, low = at_shares(rows, "psnr"), at_shares(rows, "psnr_p10")
    meant = at_shares([row for row in rows if row.get("right") is not None], "right")
    lines = [f"{'PSNR (p10) right, at computed share':42}" + "".join(f"{share:>18.0%}" for share in SHARES)]
    for name, values in sorted(median.items(), key=lambda one: -np.nan_to_num(one[1][1])):
        said = meant.get(name, [float("nan")] * len(values))
        figures = zip(values, low[name], said, strict=True)
        cells = [f"{m:6.1f} ({p:4.1f}) {r:4.0%}".replace(" nan%", "") if m == m else "-" for m, p, r in figures]
        lines.append(f"{name:42}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], title: str, name: str) -> Path:
    """PSNR over computed share, one line a method, as ``results/<name>.png``."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(row["method"] for row in rows):
        points = sorted((cost(row), row["psnr"]) for row in rows if row["method"] == method)
        ours = method.startswith("ours")
        style: dict[str, Any] = {"linewidth": 2.6, "zorder": 3} if ours else {"linewidth": 1.2, "alpha": 0.85}
        marker = "*" if method == "ours (shipped)" else "o"
        axes.plot(
            *zip(*points, strict=True), marker=marker, markersize=12 if marker == "*" else 4, label=method, **style
        )
    axes.set_xlabel("share of the steps computed")
    axes.set_ylabel("PSNR against the uncached run, dB (median)")
    axes.set_title(title)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    return save_picture(name, partial(figure.savefig, format="png", dpi=120))


def setup_of(model: str, name: str) -> tuple[Setup, dict[str, Any]]:
    """Setup and engine settings; at the guidance the model is calibrated with, unless the setup is about that."""
    setup, base = SETUPS[name]
    return (setup if name == "guidance 1" else replace(setup, guidance=specimen(model).default.guidance)), base


def main(argv: Sequence[str]) -> int:
    """Print the table, save it, and draw the curve."""
    p = Parser("curve", description=__doc__)
    p.add_argument("--model", default="mini", choices=list(MODELS))
    p.add_argument("--setup", default="blockwise", choices=list(SETUPS))
    p.add_argument("--pairs", type=int, help=f"held-out prompts and seeds (default: {PAIRS})")
    p.add_argument("--few", action="store_true", help="three settings of each method; always so with mini scenes")
    p.add_argument("--methods", help="comma-separated beginnings of method names")
    options = p.parse_args(argv)
    model, count = options.model, PAIRS[options.model] if options.pairs is None else options.pairs
    require_count("pairs", count, minimum=1, maximum=100)
    setup, base = setup_of(model, options.setup)
    name = "-".join(["curve", *([] if model == "mini" else [model]), options.setup.replace(" ", "-")])
    figures = stored(name)
    rows: list[dict[str, Any]] = figures.get("rows", []) if figures.get("pairs") == count else []
    done = {place(row) for row in rows if row.get("right") is not None}  # older ones have none
    wanted = tuple(options.methods.split(",")) if options.methods else ("",)
    comparison = Comparison(setup, pairs(1000, count, model), of=specimen(model), **base)
    uncached = comparison.rates(comparison.reference)
    subject = Subject(model, setup, paired(specimen(model).prompts, 5000, 4), few=options.few or model != "mini")
    print(f"every step computed: {right(uncached):.1%} right\n{Row.HEADER}", flush=True)
    for method in methods(subject):
        if (method.name, method.point) in done or not method.name.startswith(wanted):
            continue
        row = comparison.row(f"{method.name} {method.point}", setup=method.setup, **method.settings())
        print(row, flush=True)
        made = {"method": method.name, "point": method.point, **asdict(row)}
        rows = [*(one for one in rows if place(one) != place(made)), made]
        content = {"model": model, "setup": options.setup, "guidance": setup.guidance, "pairs": count}
        save(name, {**content, "uncached": uncached, "rows": rows})
    print(f"\n{at_shares_text(rows)}\n")
    path = draw(rows, f"{model}, {options.setup}, {setup.steps} steps, guidance {setup.guidance:g}", name)
    print(f"saved: {path.with_suffix('')}.json, .png")
    return 0


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
