"""Sparse attention in a run's picture: how much every step computed, and which heads how much of every chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .record import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BAR = "#FFFFFF"
_INK = "#222222"


def step_bars(axes: Axes, record: RunRecord) -> bool:
    """On the map: a bar in every computed cell that attended sparsely, a full cell high for all of its attention. False
    when there is none.
    """
    shares = record.step_densities
    if not shares:
        return False
    places = [(chunk, step, 0.86 * share) for (chunk, step), share in shares.items()]
    bottoms, heights = [chunk + 0.43 for chunk, _, _ in places], [-height for _, _, height in places]
    axes.bar([step for _, step, _ in places], heights, bottom=bottoms, width=0.22, color=BAR, linewidth=0)
    return True


def heads(axes: Axes, record: RunRecord) -> None:
    """Chunks from top to bottom, heads from left to right, layer by layer; the darker, the more was computed."""
    rows = {told.chunk: [share for row in told.density for share in row] for told in record.head_densities}
    layers, width = len(record.head_densities[0].density), len(record.head_densities[0].density[0])
    table = np.full((record.started.chunks, layers * width), np.nan)
    for chunk, row in rows.items():
        table[chunk] = row
    image = axes.pcolormesh(table, cmap="Blues", vmin=0.0, vmax=1.0)
    for layer in range(1, layers):
        axes.axvline(layer * width, color=_INK, linewidth=0.6)
    axes.invert_yaxis()
    axes.set_xticks([(layer + 0.5) * width for layer in range(layers)], [str(layer) for layer in range(layers)])
    if layers > 20:
        axes.set_xticks(axes.get_xticks()[::5])
    shown = range(0, record.started.chunks, -(-record.started.chunks // 8))
    axes.set_yticks([chunk + 0.5 for chunk in shown], [str(chunk) for chunk in shown])
    axes.tick_params(length=0)
    axes.set(ylabel="chunk", xlabel=f"layer, {width} heads each")
    axes.spines[:].set_visible(False)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.01, aspect=8)
    bar.set_label("attention computed", fontsize=8)
