"""Where the compute went, as a PNG. Needs matplotlib (extra "plots")."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import whole_file
from . import places
from .record import RunRecord

ACROSS = 4


def save(record: RunRecord, video: places.Picture | None, path: Path) -> None:
    """A tile for every chunk with steps in part, over ``video [T, H, W, 3]``; the file is whole or absent.

    SettingError when the folder cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown, told = places.tiles(record, video), places.sentence(record)
    across = min(ACROSS, len(shown))
    down = -(-len(shown) // across)
    height, width = shown[0].picture.shape[:2]
    figure = Figure(figsize=(3 * across, 3 * down * height / width + 0.35 * down + 0.8), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{told}\nlight: seldom, dark: often; middle frame of each chunk", fontsize=10)
    grid: Any = figure.subplots(down, across, squeeze=False)
    for axes, tile in zip(grid.flat, shown, strict=False):
        axes.imshow(tile.picture, interpolation="nearest")
        axes.set_title(f"chunk {tile.chunk}: {tile.least} to {tile.most}, {tile.mean:.1f} of {tile.steps}", fontsize=9)
    for axes in grid.flat:
        axes.axis("off")
    with whole_file(path) as part:
        figure.savefig(part, format="png")
