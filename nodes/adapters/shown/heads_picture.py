"""Measured heads as the host's IMAGE: what a density costs with one p and with p per head, and p of every head."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw
from torch import Tensor

from ....flowcache_core.presets.own import OwnHeads
from ....flowcache_core.report.figure import COLOURS
from .densities import DARK, LIGHT
from .page import Page
from .theme import LABEL, LINE, MARGIN, TITLE, WIDTH, Theme, tensor, theme_of

LEFT, PLOT_HEIGHT = MARGIN + 84, 280
LARGEST = 480  # pixels of the table


def draw_heads(own: OwnHeads, page: Page) -> Tensor:
    """``[1, H, W, 3]`` from 0 to 1."""
    method, table = own.preset.method, own.preset.method.shared_out.p
    assert not isinstance(table, float)
    theme = theme_of(page)
    image = Image.new("RGB", (WIDTH, 2000), theme.paper)
    pen = ImageDraw.Draw(image)
    title = f"{own.name}: error of a step over the share of attention computed"
    y = theme.text(pen, (MARGIN, MARGIN), theme.wrapped(theme.says(title), TITLE), theme.ink, TITLE)
    y = plot(pen, own, y + LABEL, theme) + 14
    cell = max(2, min(32, (WIDTH - 2 * MARGIN) // len(table[0]), LARGEST // len(table)))
    for layer, row in enumerate(table):
        for head, p in enumerate(row):
            colour = tuple(round(a + (b - a) * p) for a, b in zip(LIGHT, DARK, strict=True))
            x, top = MARGIN + head * cell, y + layer * cell
            pen.rectangle((x, top, x + cell - 2, top + cell - 2), fill=colour)  # type: ignore[arg-type]
    words = f"p of every head (across) in every layer (down) at density {method.density:g}: light little, dark all"
    y = theme.text(pen, (MARGIN, y + cell * len(table) + 8), theme.wrapped(theme.says(words)), theme.soft)
    return tensor(image.crop((0, 0, WIDTH, round(y) + MARGIN)))


def plot(pen: ImageDraw.ImageDraw, own: OwnHeads, top: float, theme: Theme) -> float:
    """Powers of ten over densities: one p for all heads, p per head, and where the preset lies; returns where the next
    thing may begin.
    """
    points = own.preset.evidence["predicted_error"]
    lines = {"one p for all heads": ("shared", COLOURS["reused"]), "p per head": ("per_head", theme.cells["computed"])}
    for name, (_, colour) in lines.items():
        top = theme.text(pen, (LEFT, top), [theme.says(name)], colour)
    top += 8
    levels = [math.log10(row[key]) for row in points for key, _ in lines.values() if row[key] > 0] or [-4.0]
    low, high = math.floor(min(levels)), math.ceil(max(*levels, math.floor(min(levels)) + 1))
    right, bottom = WIDTH - 2 * MARGIN, top + PLOT_HEIGHT

    def place(density: float, error: float) -> tuple[float, float]:
        level = max(low, math.log10(error)) if error > 0 else low
        return LEFT + (right - LEFT) * density, bottom - PLOT_HEIGHT * (level - low) / (high - low)

    for level in range(low, high + 1):
        _, y = place(0, 10.0**level)
        pen.line((LEFT, y, right, y), fill=theme.grid)
        pen.text((LEFT - 8, y), f"1e{level}", fill=theme.ink, font=theme.font(LABEL), anchor="rm")
    for tenth in range(0, 11, 2):
        x, _ = place(tenth / 10, 10.0**low)
        pen.text((x, bottom + 6), f"{tenth / 10:g}", fill=theme.ink, font=theme.font(LABEL), anchor="mt")
    for key, colour in lines.values():
        corners = [place(row["density"], row[key]) for row in points]
        if len(corners) > 1:
            pen.line(corners, fill=colour, width=4)
        for x, y in corners:
            pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=colour)
    x, _ = place(own.preset.method.density, 10.0**low)
    pen.line((x, top, x, bottom), fill=theme.budget, width=3)
    return bottom + LINE + 8
