"""A calibration as the host's IMAGE: expected quality over computed steps, and the steps of the preset."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from ....flowcache_core.calibrate.choose import Chooser
from ....flowcache_core.presets import Preset
from ....flowcache_core.reuse.schedule import StaticSchedule
from .page import Page
from .theme import LABEL, LINE, MARGIN, TITLE, WIDTH, Theme, tensor, theme_of

LEFT, PLOT_HEIGHT, CELL_HEIGHT = MARGIN + 84, 320, 40
DECIBELS = 10  # between two lines


def draw_curve(chooser: Chooser, preset: Preset, page: Page) -> Tensor:
    """``[1, H, W, 3]`` from 0 to 1."""
    policy = preset.policy
    assert isinstance(policy, StaticSchedule)
    lists = [("first chunk", policy.first or policy.computed), ("later chunks", policy.computed)]
    if chooser.length == 1:
        del lists[1]
    theme = theme_of(page)
    image = Image.new("RGB", (WIDTH, 2000), theme.paper)
    pen = ImageDraw.Draw(image)
    title = f"{preset.name}: expected quality over computed steps"
    y = theme.text(pen, (MARGIN, MARGIN), theme.wrapped(theme.says(title), TITLE), theme.ink, TITLE)
    y = plot(pen, chooser, shared(chooser, policy), y + LABEL, theme)
    y = cells(pen, lists, chooser.steps, y + 14, theme)
    return tensor(image.crop((0, 0, WIDTH, round(y) + MARGIN)))


def shared(chooser: Chooser, policy: StaticSchedule) -> float:
    """Share of the steps that the preset computes in a video of the chooser's length."""
    first, later = policy.first or policy.computed, policy.computed
    return (len(first) + (chooser.length - 1) * len(later)) / (chooser.length * chooser.steps)


def plot(pen: ImageDraw.ImageDraw, chooser: Chooser, chosen: float, top: float, theme: Theme) -> float:
    """dB over shares, and where the preset lies; returns where the next thing may begin."""
    points = [(chooser.share(way), chooser.psnr(way)) for way in chooser.curve]
    low = DECIBELS * int(min(psnr for _, psnr in points) // DECIBELS)
    best = max((psnr for share, psnr in points if share < 1), default=low)
    high = DECIBELS * (1 + int(best // DECIBELS))
    right, bottom = WIDTH - 2 * MARGIN, top + PLOT_HEIGHT

    def place(share: float, psnr: float) -> tuple[float, float]:
        return LEFT + (right - LEFT) * share, bottom - PLOT_HEIGHT * (min(psnr, high) - low) / (high - low)

    for level in range(low, high + 1, DECIBELS):
        _, y = place(0, level)
        pen.line((LEFT, y, right, y), fill=theme.grid, width=2)
        pen.text((LEFT - 10, y), f"{level} dB", fill=theme.ink, font=theme.font(LABEL), anchor="rm")
    for tenth in range(0, 11, 2):
        x, _ = place(tenth / 10, low)
        pen.text((x, bottom + 20), f"{10 * tenth} %", fill=theme.ink, font=theme.font(LABEL), anchor="mt")
    corners = [place(*point) for point in points]
    if len(corners) > 1:
        pen.line(corners, fill=theme.cells["computed"], width=5)
    pen.text(
        (right, bottom + 20 + LINE),
        theme.says("computed steps of all"),
        fill=theme.soft,
        font=theme.font(LABEL),
        anchor="rt",
    )
    share, psnr = min(points, key=lambda point: abs(point[0] - chosen))
    x, y = place(share, psnr)
    pen.ellipse((x - 10, y - 10, x + 10, y + 10), fill=theme.budget)
    label = theme.says(f"{share:.0%} computed, about {psnr:.0f} dB")
    # Below the curve, which rises, and to the right of it as long as there is room.
    room = right - x - 20 > theme.length(label)
    below = min(y + 26, bottom - LINE)
    pen.text(
        (x + 18 if room else right, below),
        label,
        fill=theme.budget,
        font=theme.font(LABEL),
        anchor="lt" if room else "rt",
    )
    return bottom + 20 + 2 * LINE


def cells(
    pen: ImageDraw.ImageDraw, lists: Sequence[tuple[str, Sequence[int]]], steps: int, top: float, theme: Theme
) -> float:
    """A row of steps per list: computed ones in their colour; returns where the next thing may begin."""
    left = MARGIN + 190
    width = (WIDTH - MARGIN - left) / steps
    gap = int(width > 5)
    for row, (name, computed) in enumerate(lists):
        y = top + row * (CELL_HEIGHT + 10)
        pen.text(
            (left - 14, y + CELL_HEIGHT / 2), theme.says(name), fill=theme.ink, font=theme.font(LABEL), anchor="rm"
        )
        for step in range(steps):
            x = left + step * width
            colour = theme.cells["computed" if step in computed else "reused"]
            pen.rectangle((round(x), y, round(x + width) - 1 - gap, y + CELL_HEIGHT - 1), fill=colour)
    y = top + len(lists) * (CELL_HEIGHT + 10)
    pen.text(
        (left, y),
        theme.says("steps of a chunk; blue: computed, orange: reused"),
        fill=theme.soft,
        font=theme.font(LABEL),
    )
    return y + LINE
