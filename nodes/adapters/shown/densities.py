"""Sparse attention in the report's picture: a bar in every sparse step, and a strip of heads."""

from __future__ import annotations

from PIL import ImageDraw, ImageFont

from ....flowcache_core.report.record import RunRecord

SMALLEST = 8  # pixels of a cell in which a bar can be seen
ROWS = 240  # pixels of the strip at most
BAR = "#FFFFFF"
INK, SOFT = "#222222", "#8A8A8A"
LIGHT, DARK = (240, 246, 252), (8, 48, 107)
WORDS = "self-attention computed, by chunk and by head, layer after layer: light little, dark all"


def bars(pen: ImageDraw.ImageDraw, record: RunRecord, corner: tuple[int, int], cell: int) -> None:
    """In the map: a cell's height is all of its self-attention."""
    left, top = corner
    for (chunk, step), share in record.step_densities.items() if cell >= SMALLEST else ():
        x, bottom = left + step * cell + cell // 2 - 2, top + (chunk + 1) * cell - 3
        pen.rectangle((x, bottom - round((cell - 5) * share), x + 2, bottom), fill=BAR)


def strip_height(record: RunRecord, line: int) -> int:
    """Pixels that :func:`strip` takes; 0 where all attention was computed."""
    return row_height(record) * record.started.chunks + 3 * line if record.densities and record.head_densities else 0


def row_height(record: RunRecord) -> int:
    return max(1, min(12, ROWS // record.started.chunks))


def strip(
    pen: ImageDraw.ImageDraw,
    record: RunRecord,
    corner: tuple[int, int],
    width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """A row per chunk, a column per head."""
    left, top = corner
    height, layers = row_height(record), len(record.head_densities[0].density)
    for told in record.head_densities:
        shares = [share for row in told.density for share in row]
        for place, share in enumerate(shares):
            x = left + width * place / len(shares)
            red, green, blue = (round(a + (b - a) * share) for a, b in zip(LIGHT, DARK, strict=True))
            y = top + told.chunk * height
            pen.rectangle((x, y, left + width * (place + 1) / len(shares), y + height - 1), fill=(red, green, blue))
    bottom = top + height * record.started.chunks
    for layer in range(1, layers):
        x = left + width * layer / layers
        pen.line((x, top, x, bottom - 1), fill=INK)
    pen.text((left, bottom + 2), WORDS, fill=SOFT, font=font)
