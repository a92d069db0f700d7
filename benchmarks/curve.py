"""Quality against compute for every method (methods.py), on the same model, plans, prompts and seeds.

    python dev.py bench curve                                        the mini model, blockwise, all methods
    python dev.py bench curve --model scenes                         mini scenes
    python dev.py bench curve --setup staggered --pairs 8 --methods ours,teacache

Beside PSNR stands how often the videos do what their prompts say (meaning.py), with --recall also what a run with the
method remembers of what was covered (recall.py: mini recall's videos, with mini scenes' presets). Rows are saved as
they are made; a second call goes on where the first stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flowcache_core.calibrate.runs import Setup, paired
from flowcache_core.commands.arguments import Parser
from flowcache_core.errors import SettingError, require_count
from flowcache_core.kv.settings import KVSettings
from flowcache_core.solvers.unipc import UniPC
from flowcache_core.sweep.kept import Kept
from flowcache_core.sweep.task import Task
from flowcache_core.sweep.workers import Workers, add_worker_arguments, kept_for, ready, swept, workers_of

from .meaning import Rates, merged_rates, right
from .methods import SHARES, Subject, methods
from .mini_runs import MODELS, Comparison, Method, Row, pairs, specimen
from .recall import recall_text, recalled
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


PARTS = ("ours, guidance at every second", "motioncache", "motioncache as published")
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
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    axes = figure.subplots()
    for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        points = sorted((cost(row), row["psnr"]) for row in rows if row["method"] == method)
        ours = method in ("ours (shipped)", "ours (calibrated)")
        style: dict[str, Any] = {"linewidth": 2.6, "zorder": 3} if ours else {"linewidth": 1.2, "alpha": 0.85}
        style["linestyle"] = ("-", "--", ":")[number // 10 % 3]  # there are ten colours
        marker = "*" if method == "ours (shipped)" else "o"
        axes.plot(
            *zip(*points, strict=True), marker=marker, markersize=12 if marker == "*" else 4, label=method, **style
        )
    axes.set_xlabel("share of the steps computed")
    axes.set_ylabel("PSNR against the uncached run, dB (median)")
    axes.set_title(title)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, ncols=3, loc="outside lower center")
    return save_picture(name, partial(figure.savefig, format="png", dpi=120))


def setup_of(model: str, name: str) -> tuple[Setup, dict[str, Any]]:
    """Setup and engine settings; at the guidance the model is calibrated with, unless the setup is about that."""
    setup, base = SETUPS[name]
    return (setup if name == "guidance 1" else replace(setup, guidance=specimen(model).default.guidance)), base


@cache
def subject_of(model: str, setup: Setup, few: bool) -> Subject:
    return Subject(model, setup, paired(specimen(model).prompts, 5000, 4), few=few)


def rows_afar(
    wanted: Sequence[Method], where: Mapping[str, Any], workers: Workers, kept: Kept
) -> Iterator[tuple[Method, Row]]:
    """The rows of methods, each as soon as workers have measured it on all pairs: a task is one of them on one."""
    tasks, owner = [], {}
    for method in wanted:
        for pair in range(where["pairs"]):
            arguments = {**where, "method": method.name, "point": method.point, "pair": pair}
            tasks.append(Task(f"{method.title} {pair}", f"{__name__}:row_of", arguments))
            owner[tasks[-1].name] = method
    found: dict[str, list[Row]] = {}
    for task, value in swept(tasks, workers, kept):
        method = owner[task.name]
        own = found.setdefault(method.title, [])
        own.append(Row(**{**value, "rates": {name: tuple(rate) for name, rate in value["rates"].items()}}))
        if len(own) == where["pairs"]:
            yield method, Row.merged(method.title, own)


def row_of(model: str, setup: str, pairs: int, few: bool, method: str, point: str, pair: int) -> dict[str, Any]:
    """A task: one method on one pair."""
    known = methods(subject_of(model, setup_of(model, setup)[0], few))
    one = next(m for m in known if (m.name, m.point) == (method, point))
    return asdict(alone(model, setup, pairs, pair).row(one.title, setup=one.setup, **one.settings()))


def uncached_of(model: str, setup: str, pairs: int, pair: int) -> Rates:
    """A task: what the uncached video of one pair answers."""
    comparison = alone(model, setup, pairs, pair)
    return comparison.rates(comparison.reference)


@lru_cache(maxsize=64)
def alone(model: str, name: str, count: int, pair: int) -> Comparison:
    setup, base = setup_of(model, name)
    return Comparison(setup, [pairs(1000, count, model)[pair]], of=specimen(model), **base)


def recall_of_method(method: Method, setup: Setup, **base: Any) -> Rates:
    """What the method's videos remember; nothing of a denoiser of another kind, which the test does not run."""
    settings = {**base, **method.settings()}
    return {} if "kind" in settings else recalled(method.setup or setup, **settings)


def main(argv: Sequence[str]) -> int:
    """Print the table, save it, and draw the curve."""
    p = Parser("curve", description=__doc__)
    p.add_argument("--model", default="mini", choices=list(MODELS))
    p.add_argument("--setup", default="blockwise", choices=list(SETUPS))
    p.add_argument("--pairs", type=int, help=f"held-out prompts and seeds (default: {PAIRS})")
    p.add_argument("--few", action="store_true", help="three settings of each method; always so with mini scenes")
    p.add_argument("--methods", help="comma-separated beginnings of method names")
    p.add_argument("--recall", action="store_true", help="the recall test too (with --model scenes)")
    add_worker_arguments(p)
    options = p.parse_args(argv)
    model, count = options.model, PAIRS[options.model] if options.pairs is None else options.pairs
    require_count("pairs", count, minimum=1, maximum=100)
    setup, base = setup_of(model, options.setup)
    if options.recall and model != "scenes":
        raise SettingError("model", model, "scenes, for --recall: its presets are those of the recall model")
    name = "-".join(["curve", *([] if model == "mini" else [model]), options.setup.replace(" ", "-")])
    figures = stored(name)
    rows: list[dict[str, Any]] = figures.get("rows", []) if figures.get("pairs") == count else []
    done = {place(row) for row in rows if row.get("right") is not None}  # older ones have none
    wanted = tuple(options.methods.split(",")) if options.methods else ("",)
    few = options.few or model != "mini"
    subject = subject_of(model, setup, few)
    workers = workers_of(options)
    missing = [m for m in methods(subject) if (m.name, m.point) not in done and m.name.startswith(wanted)]
    content = {"model": model, "setup": options.setup, "guidance": setup.guidance, "pairs": count}
    recalls = {place(row): row["recall"] for row in rows if row.get("recall")}
    content["uncached_recall"] = figures.get("uncached_recall") or (recalled(setup, **base) if options.recall else {})

    def add(method: Method, row: Row) -> None:
        print(row, flush=True)
        made = {"method": method.name, "point": method.point, **asdict(row)}
        made["recall"] = recalls.get(place(made), {})
        rows[:] = [*(one for one in rows if place(one) != place(made)), made]
        save(name, {**content, "uncached": uncached, "rows": rows})

    if workers is None:
        comparison = Comparison(setup, pairs(1000, count, model), of=specimen(model), **base)
        uncached = comparison.rates(comparison.reference)
        print(f"every step computed: {right(uncached):.1%} right\n{Row.HEADER}", flush=True)
        for method in missing:
            add(method, comparison.row(method.title, setup=method.setup, **method.settings()))
    else:
        where = {"model": model, "setup": options.setup, "pairs": count}
        chosen = {**where, "few": few}
        kept = kept_for(name, where)
        tasks = [Task(f"uncached {i}", f"{__name__}:uncached_of", {**where, "pair": i}) for i in range(count)]
        with ready(workers):
            uncached = merged_rates([value for _, value in swept(tasks, workers, kept)])
            print(f"every step computed: {right(uncached):.1%} right\n{Row.HEADER}", flush=True)
            for method, row in rows_afar(missing, chosen, workers, kept):
                add(method, row)
    if options.recall:
        print(f"every step computed: {recall_text(content['uncached_recall'])}", flush=True)
        known = [m for m in methods(subject) if m.name.startswith(wanted) and (m.name, m.point) not in recalls]
        for method in known:
            measured = next(one for one in rows if place(one) == (method.name, method.point))
            measured["recall"] = recall_of_method(method, setup, **base)
            print(f"{method.title:44} {recall_text(measured['recall'])}", flush=True)
            save(name, {**content, "uncached": uncached, "rows": rows})
    print(f"\n{at_shares_text(rows)}\n")
    path = draw(rows, f"{model}, {options.setup}, {setup.steps} steps, guidance {setup.guidance:g}", name)
    print(f"saved: {path.with_suffix('')}.json, .png")
    return 0


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
