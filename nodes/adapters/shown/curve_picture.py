"""A calibration as the host's IMAGE: expected quality over computed steps, and the steps of the preset."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from ....flowcache_core.calibrate.choose import Chooser
from ....flowcache_core.presets import Preset
from ....flowcache_core.report.figure import COLOURS
from ....flowcache_core.reuse.schedule import StaticSchedule
from .picture import BUDGET, INK, LABEL, MARGIN, SOFT, TITLE, WIDTH, font, tensor

LEFT, PLOT_HEIGHT, CELL_HEIGHT = MARGIN + 72, 260, 30
DECIBELS = 10  # between two lines


def draw_curve(chooser: Chooser, preset: Preset) -> Tensor:
    """``[1, H, W, 3]`` from 0 to 1."""
    policy = preset.policy
    assert isinstance(policy, StaticSchedule)
    lists = [("first chunk", policy.first or policy.computed), ("later chunks", policy.computed)]
    if chooser.length == 1:
        del lists[1]
    top = MARGIN + TITLE + 2 * LABEL
    rows = top + PLOT_HEIGHT + 4 * LABEL
    image = Image.new("RGB", (WIDTH, rows + len(lists) * (CELL_HEIGHT + 8) + 2 * LABEL + MARGIN), "white")
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, MARGIN), f"{preset.name}: expected quality over computed steps", fill=INK, font=font(TITLE))
    plot(pen, chooser, shared(chooser, policy), top)
    cells(pen, lists, chooser.steps, rows)
    return tensor(image)


def shared(chooser: Chooser, policy: StaticSchedule) -> float:
    """Share of the steps that the preset computes in a video of the chooser's length."""
    first, later = policy.first or policy.computed, policy.computed
    return (len(first) + (chooser.length - 1) * len(later)) / (chooser.length * chooser.steps)


def plot(pen: ImageDraw.ImageDraw, chooser: Chooser, chosen: float, top: int) -> None:
    """dB over shares, the shares as vertical lines, and where the preset lies."""
    points = [(chooser.share(way), chooser.psnr(way)) for way in chooser.curve]
    low = DECIBELS * int(min(psnr for _, psnr in points) // DECIBELS)
    best = max((psnr for share, psnr in points if share < 1), default=low)
    high = DECIBELS * (1 + int(best // DECIBELS))
    right, bottom = WIDTH - 2 * MARGIN, top + PLOT_HEIGHT

    def place(share: float, psnr: float) -> tuple[float, float]:
        return LEFT + (right - LEFT) * share, bottom - PLOT_HEIGHT * (min(psnr, high) - low) / (high - low)

    for level in range(low, high + 1, DECIBELS):
        _, y = place(0, level)
        pen.line((LEFT, y, right, y), fill="#E4E4E4")
        pen.text((LEFT - 8, y), f"{level} dB", fill=INK, font=font(LABEL), anchor="rm")
    for tenth in range(0, 11, 2):
        x, _ = place(tenth / 10, low)
        pen.text((x, bottom + 6), f"{10 * tenth} %", fill=INK, font=font(LABEL), anchor="mt")
    corners = [place(*point) for point in points]
    if len(corners) > 1:
        pen.line(corners, fill=COLOURS["computed"], width=3)
    pen.text((right, bottom + 10 + LABEL), "computed steps of all", fill=SOFT, font=font(LABEL), anchor="rt")
    share, psnr = min(points, key=lambda point: abs(point[0] - chosen))
    x, y = place(share, psnr)
    pen.ellipse((x - 7, y - 7, x + 7, y + 7), fill=BUDGET)
    label, room = f"{share:.0%} computed, about {psnr:.0f} dB expected", x < LEFT + 0.6 * (right - LEFT)
    pen.text((x + 14 if room else x - 14, y + 12), label, fill=BUDGET, font=font(LABEL), anchor="lt" if room else "rt")


def cells(pen: ImageDraw.ImageDraw, lists: Sequence[tuple[str, Sequence[int]]], steps: int, top: int) -> None:
    """A row of steps per list: computed ones dark."""
    left, width = MARGIN + 110, (WIDTH - 3 * MARGIN - 110) / steps
    gap = 1 if width > 4 else 0
    for row, (name, computed) in enumerate(lists):
        y = top + row * (CELL_HEIGHT + 8)
        pen.text((left - 10, y + CELL_HEIGHT / 2), name, fill=INK, font=font(LABEL), anchor="rm")
        for step in range(steps):
            x = left + step * width
            colour = COLOURS["computed" if step in computed else "reused"]
            pen.rectangle((x, y, x + width - 1 - gap, y + CELL_HEIGHT - 1), fill=colour)
    y = top + len(lists) * (CELL_HEIGHT + 8)
    pen.text((left, y), "own steps; blue: computed, orange: reused", fill=SOFT, font=font(LABEL))
