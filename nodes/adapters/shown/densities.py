"""Sparse attention in the report's picture: a bar in every sparse step, and a strip of heads."""

from __future__ import annotations

from collections.abc import Callable

from PIL import ImageDraw

from ....flowcache_core.report.record import RunRecord
from .theme import Theme

SMALLEST = 8  # pixels of a cell in which a bar can be seen
ROWS = 240  # pixels of the strip at most
BAR = "#FFFFFF"
LIGHT, DARK = (240, 246, 252), (8, 48, 107)
WORDS = "self-attention computed, by chunk and by head, layer after layer: light little, dark all"


def bars(pen: ImageDraw.ImageDraw, record: RunRecord, box: Callable[[int, int], tuple[int, int, int, int]]) -> None:
    """In the map: a cell's height is all of its self-attention. box: corners of the cell of a chunk and step."""
    for (chunk, step), share in record.step_densities.items():
        left, top, right, bottom = box(chunk, step)
        if min(right - left, bottom - top) + 2 >= SMALLEST:
            x = (left + right) // 2 - 1
            pen.rectangle((x, bottom - 2 - round((bottom - top - 4) * share), x + 2, bottom - 2), fill=BAR)


def rows(record: RunRecord) -> int:
    """Chunks that the strip shows; 0 where all attention was computed."""
    return record.started.chunks if record.densities and record.head_densities else 0


def strip(pen: ImageDraw.ImageDraw, record: RunRecord, corner: tuple[float, float], width: int, theme: Theme) -> float:
    """A row per chunk, a column per head, and what they are; returns where the next thing may begin."""
    left, top = corner
    height = max(1, min(14, ROWS // rows(record)))
    layers = len(record.head_densities[0].density)
    for told in record.head_densities:
        shares = [share for row in told.density for share in row]
        for place, share in enumerate(shares):
            x = left + width * place / len(shares)
            red, green, blue = (round(a + (b - a) * share) for a, b in zip(LIGHT, DARK, strict=True))
            y = top + told.chunk * height
            pen.rectangle((x, y, left + width * (place + 1) / len(shares), y + height - 1), fill=(red, green, blue))
    bottom = top + height * rows(record)
    for layer in range(1, layers):
        x = left + width * layer / layers
        pen.line((x, top, x, bottom - 1), fill=theme.ink)
    return theme.text(pen, (left, bottom + 6), theme.wrapped(theme.says(WORDS), width=width), theme.soft) + 8
