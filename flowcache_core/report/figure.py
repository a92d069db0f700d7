"""A record as a picture: chunk x step map, distance per step, K/V tokens. Needs matplotlib (extra "plots")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..files import whole_file
from . import density_figure
from .record import Kind, RunRecord
from .text import headline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito hues with clearly different lightness, so that the map survives colour blindness and grey print.
COLOURS: dict[Kind, str] = {
    "given": "#999999",
    "warm-up": "#56B4E9",
    "computed": "#0072B2",
    "forced": "#003A5C",
    "part": "#D9C08A",
    "reused": "#F5C77E",
    "not finite": "#A50026",
    "pending": "#F2F2F2",
}
LABELS: dict[Kind, str] = {
    "given": "given clean",
    "warm-up": "computed: warm-up",
    "computed": "computed",
    "forced": "computed by force (last step, cap)",
    "part": "computed in part (filled: share of the tokens)",
    "reused": "reused",
    "not finite": "not finite",
    "pending": "not run yet",
}
KINDS: tuple[Kind, ...] = tuple(COLOURS)
_WIDTH, _DPI = 12.0, 100  # inches and dots per inch: 1200 pixels
_LEGEND = 140  # letters of a legend in a row, its samples counted as five each
_INK, _SOFT, _BUDGET, _MARK, _BAR = "#222222", "#8A8A8A", "#D55E00", "#CC3377", "#9A5B00"
_CURVE_ROWS = 12  # up to this many chunks a row is high enough for a curve of its accumulated distance


def map_codes(record: RunRecord) -> npt.NDArray[np.int64]:
    """The chunk x step map as indices into ``KINDS``, ``[chunks, steps]``; masked where a chunk has fewer steps."""
    steps = record.started.steps
    codes = [[KINDS.index(k) for k in row] + [-1] * (steps - len(row)) for row in record.kinds]
    return np.ma.masked_equal(codes, -1)


def draw(record: RunRecord) -> Figure:
    """The picture as a matplotlib figure of 1200 pixels width; no global matplotlib state is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    chunks = record.started.chunks
    heights = {"map": min(5.0, max(1.0, (0.36 if chunks <= _CURVE_ROWS else 0.13) * chunks))}
    if _distances(record):
        heights["distance"] = 1.3
    if record.densities and record.head_densities:
        heights["heads"] = min(2.5, max(0.9, 0.16 * chunks))
    if record.started.kv_tokens:
        heights["kv"] = 1.3
    height = sum(heights.values()) + 0.62 * len(heights) + 0.75
    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(headline(record), fontsize=14, color=_INK)
    if record.fault:
        figure.text(0.5, 0.005, record.fault, ha="center", va="bottom", fontsize=10, color=COLOURS["not finite"])
    grid: Any = figure.subplots(len(heights), 1, squeeze=False, height_ratios=list(heights.values()))
    axes = dict(zip(heights, grid[:, 0], strict=True))
    _map(axes["map"], record)
    if "distance" in axes:
        _distance(axes["distance"], record)
        axes["distance"].sharex(axes["map"])
    if "heads" in axes:
        density_figure.heads(axes["heads"], record)
    if "kv" in axes:
        _kv(axes["kv"], record)
    return figure


def save(record: RunRecord, path: Path) -> None:
    """Write the picture as PNG; the file is whole or absent. Raises SettingError when the folder cannot be written."""
    with whole_file(path) as part:
        draw(record).savefig(part, format="png")


def _map(axes: Axes, record: RunRecord) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    codes = map_codes(record)
    chunks, steps = codes.shape
    colours = ListedColormap([COLOURS[k] for k in KINDS])
    line = 1.0 if chunks <= _CURVE_ROWS else 0.4 if chunks <= 60 else 0.0
    x, y = np.arange(steps + 1) - 0.5, np.arange(chunks + 1) - 0.5
    limits: dict[str, Any] = {"vmin": -0.5, "vmax": len(KINDS) - 0.5}
    axes.pcolormesh(x, y, codes, cmap=colours, edgecolors="white", linewidth=line, **limits)
    for window in record.windows[1:]:
        axes.axhline(window.first_chunk - 0.5, color=_INK, linewidth=1.2)
    axes.invert_yaxis()
    axes.set(ylabel="chunk", xlabel="own step of the chunk")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=20 if axis is axes.xaxis else 10, integer=True, min_n_ticks=1))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    present = [KINDS[code] for code in np.unique(codes)]
    handles = [Patch(color=COLOURS[k], label=LABELS[k]) for k in present]
    if chunks <= _CURVE_ROWS and _accumulated(axes, record):
        handles.append(Patch(color=_BAR, label="accumulated distance (full cell: threshold)"))
    if chunks <= _CURVE_ROWS and density_figure.step_bars(axes, record):
        label = "self-attention computed (full cell: all)"
        handles.append(Patch(facecolor=density_figure.BAR, edgecolor=_SOFT, label=label))
    _parts(axes, record)
    _legend(axes, handles)


def _parts(axes: Axes, record: RunRecord) -> None:
    """Cells of steps of which some tokens were computed are filled from below as far as their share."""
    parts = [step for step in record.steps_taken if step.action == "part"]
    heights = [-0.96 * step.computed_tokens / step.tokens for step in parts]
    bottoms = [step.chunk + 0.48 for step in parts]
    axes.bar([step.step for step in parts], heights, bottom=bottoms, width=0.92, color=COLOURS["computed"], linewidth=0)


def _accumulated(axes: Axes, record: RunRecord) -> bool:
    """A bar in every reused cell: its accumulated distance on the way to the threshold. False when there is none."""
    reused = [s for s in record.steps_taken if s.action == "reuse" and s.accumulated is not None]
    if not reused or not record.threshold:
        return False
    heights = [0.86 * min(1.0, max(0.0, (s.accumulated or 0.0) / record.threshold)) for s in reused]
    bottoms = [s.chunk + 0.43 for s in reused]
    axes.bar([s.step for s in reused], [-h for h in heights], bottom=bottoms, width=0.3, color=_BAR, linewidth=0)
    return True


def _distances(record: RunRecord) -> dict[int, list[tuple[int, float]]]:
    """Per chunk (own step, distance), those that are numbers."""
    by_chunk: dict[int, list[tuple[int, float]]] = {}
    for step in record.steps_taken:
        if step.distance is not None and math.isfinite(step.distance):
            by_chunk.setdefault(step.chunk, []).append((step.step, step.distance))
    return by_chunk


def _distance(axes: Axes, record: RunRecord) -> None:
    by_chunk = _distances(record)
    for points in by_chunk.values():
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=_SOFT, alpha=max(0.12, 0.7 / len(by_chunk) ** 0.5), linewidth=1)
    steps = sorted({x for points in by_chunk.values() for x, _ in points})
    middle = [float(np.median([d for points in by_chunk.values() for x, d in points if x == s])) for s in steps]
    axes.plot(steps, middle, color=_INK, linewidth=1.6, marker="o", markersize=2.5, label="distance, median of chunks")
    everything = [d for points in by_chunk.values() for _, d in points]
    if min(everything) > 0 and max(everything) > 30 * min(everything):
        axes.set_yscale("log")
    else:
        axes.set_ylim(min(0.0, *everything), 1.08 * max(*everything, record.threshold or 0.0))
    if record.threshold:
        label = f"threshold {record.threshold:g}"
        axes.axhline(record.threshold, color=_BUDGET, linestyle="--", linewidth=1.4, label=label)
    axes.set(ylabel="distance")
    _finish(axes)


def _kv(axes: Axes, record: RunRecord) -> None:
    ticks, tokens = zip(*record.kv_tokens, strict=True) if record.kv_tokens else ((0,), (0,))
    axes.fill_between(ticks, tokens, step="mid", color=COLOURS["warm-up"], alpha=0.35, linewidth=0)
    axes.step(ticks, tokens, where="mid", color=COLOURS["computed"], linewidth=1.6, label="K/V tokens a layer")
    started = record.started
    allocated = f"allocated {started.kv_tokens} ({started.kv_bytes / 1e6:.2f} MB)"
    axes.axhline(started.kv_tokens, color=_SOFT, linestyle=":", linewidth=1.4, label=allocated)
    if started.budget_tokens is not None:
        budget = f"budget for clean chunks {started.budget_tokens}"
        axes.axhline(started.budget_tokens, color=_BUDGET, linestyle="--", linewidth=1.4, label=budget)
    if record.compressions:
        x = [event.tick for event in record.compressions]
        y = [event.tokens_after for event in record.compressions]
        axes.plot(x, y, linestyle="none", marker="v", markersize=7, color=_MARK, label=f"compressed {len(x)}x")
    axes.set(ylabel="K/V tokens", xlabel="tick")
    axes.set_ylim(0, 1.12 * max(started.kv_tokens, *tokens))
    axes.margins(x=0.01)
    _finish(axes)


def _finish(axes: Axes) -> None:
    """What the two plots have in common: quiet frame, faint grid, legend above."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=20, integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.8)
    axes.set_axisbelow(True)
    _legend(axes, axes.get_legend_handles_labels()[0])


def _legend(axes: Axes, handles: Sequence[Any]) -> None:
    """One line above the axes."""
    anchor: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
    style: dict[str, Any] = {"frameon": False, "fontsize": 9.5, "columnspacing": 1.4, "handlelength": 1.6}
    letters = sum(len(str(handle.get_label())) + 5 for handle in handles)
    rows = -(-letters // _LEGEND)  # a legend too wide for the picture would squeeze the plots
    axes.legend(handles=handles, ncols=-(-len(handles) // rows) or 1, **anchor, **style)
