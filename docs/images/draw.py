"""Icon and banner of the pack: ``python docs/images/draw.py`` writes icon.png and banner.png beside this file.

Both show the pack's own picture, the map of chunks (rows) and steps (columns): blue was computed, orange reused.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
GROUND, WARM_UP, COMPUTED, REUSED, TEXT, SOFT = "#12141C", "#56B4E9", "#0072B2", "#F5B041", "#F4F6FA", "#9AA3B2"
CELLS = {"w": WARM_UP, "#": COMPUTED, ".": REUSED}
OVERSAMPLING = 4

# A chunk that starts later is further right: the staggered order of diffusion forcing.
ICON_MAP = ("w#..#  ", " w#..# ", "  w#..#")
BANNER_MAP = (
    "ww#..#..#.#          ",
    "  ww#...#.#.#        ",
    "    ww#..#..#.#      ",
    "      ww#...#..##    ",
    "        ww#..#.#.#   ",
    "          ww#...#.#  ",
)


def draw_map(pen: ImageDraw.ImageDraw, rows: tuple[str, ...], corner: tuple[float, float], cell: float) -> None:
    """Rounded cells on a grid of ``cell`` pixels; blanks stay empty."""
    left, top = corner
    gap, radius = cell * 0.09, cell * 0.22
    for y, row in enumerate(rows):
        for x, kind in enumerate(row):
            if kind in CELLS:
                x0, y0 = left + x * cell, top + y * cell
                box = (x0 + gap, y0 + gap, x0 + cell - gap, y0 + cell - gap)
                pen.rounded_rectangle(box, radius, fill=CELLS[kind])


def icon(size: int = 400) -> Image.Image:
    full = size * OVERSAMPLING
    image = Image.new("RGBA", (full, full), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((0, 0, full - 1, full - 1), full * 0.2, fill=GROUND)
    cell = full * 0.86 / len(ICON_MAP[0])
    draw_map(pen, ICON_MAP, (full * 0.07, (full - cell * len(ICON_MAP)) / 2), cell)
    return image.resize((size, size), Image.Resampling.LANCZOS)


def banner(width: int = 1260, height: int = 540) -> Image.Image:
    scale = OVERSAMPLING // 2
    image = Image.new("RGB", (width * scale, height * scale), GROUND)
    pen = ImageDraw.Draw(image)
    cell = width * scale * 0.54 / len(BANNER_MAP[0])
    top = (height * scale - cell * len(BANNER_MAP)) / 2
    draw_map(pen, BANNER_MAP, (width * scale * 0.47, top), cell)
    left = width * scale * 0.05
    lines = (
        ("FlowCache", 0.16, TEXT, 0.30),
        ("Longer videos, fewer steps,", 0.054, SOFT, 0.54),
        ("bounded memory: reuse and K/V", 0.054, SOFT, 0.625),
        ("compression for AR video models", 0.054, SOFT, 0.71),
    )
    for text, size, colour, y in lines:
        pen.text((left, height * scale * y), text, fill=colour, font=ImageFont.load_default(height * scale * size))
    return image.resize((width, height), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    icon().save(HERE / "icon.png", optimize=True)
    banner().quantize(128).save(HERE / "banner.png", optimize=True)
