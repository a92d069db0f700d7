"""The chunk x step map with the K/V budget as the host's IMAGE, drawn with PIL, which every host has."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ....flowcache_core.report.figure import COLOURS, KINDS, LABELS, map_codes
from ....flowcache_core.report.record import Kind, RunRecord
from ....flowcache_core.report.text import headline
from . import densities

WIDTH, MARGIN, GUTTER = 960, 24, 64
INK, SOFT, BUDGET, MARK = "#222222", "#8A8A8A", "#D55E00", "#CC3377"
TITLE, LABEL = 22, 15
PLOT_HEIGHT = 150
LETTERS = 78  # of a title in a line


def draw(record: RunRecord) -> Tensor:
    """``[1, H, W, 3]`` from 0 to 1: what was computed and reused, of the attention too where it is sparse, and
    below it the K/V tokens held at every tick.
    """
    chunks, steps = map_codes(record).shape
    cell = max(2, min(40, (WIDTH - 2 * MARGIN - GUTTER) // steps, 900 // chunks))
    map_height = cell * chunks
    plot = PLOT_HEIGHT + 3 * LABEL if record.kv_tokens and record.started.kv_tokens else 0
    fault = wrapped(record.fault)
    top = MARGIN + TITLE + (3 + len(fault)) * LABEL
    heads = densities.strip_height(record, LABEL)
    image = Image.new("RGB", (WIDTH, top + map_height + 2 * LABEL + heads + plot + MARGIN), "white")
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN, MARGIN), headline(record), fill=INK, font=font(TITLE))
    for number, line in enumerate(fault):
        place = (MARGIN, MARGIN + TITLE + 6 + number * LABEL)
        pen.text(place, line, fill=COLOURS["not finite"], font=font(LABEL))
    legend(
        pen,
        (MARGIN, MARGIN + TITLE + (1 + len(fault)) * LABEL),
        [kind for kind in KINDS if kind in {k for row in record.kinds for k in row}],
    )
    step_map(pen, record, (MARGIN + GUTTER, top), cell)
    densities.bars(pen, record, (MARGIN + GUTTER, top), cell)
    below, width = top + map_height, WIDTH - 2 * MARGIN - GUTTER
    if heads:
        densities.strip(pen, record, (MARGIN + GUTTER, below + 3 * LABEL), width, font(LABEL))
    if plot:
        kv_plot(pen, record, (MARGIN + GUTTER, below + heads + 4 * LABEL), width)
    return tensor(image)


def draw_sentence(sentence: str) -> Tensor:
    """``[1, H, W, 3]``: a sentence in the place of the map."""
    lines = textwrap.wrap(sentence, LETTERS)
    image = Image.new("RGB", (WIDTH, 2 * MARGIN + len(lines) * (TITLE + 8)), "white")
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + number * (TITLE + 8)), line, fill=INK, font=font(TITLE))
    return tensor(image)


def tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)[None]


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def wrapped(sentence: str | None) -> list[str]:
    """Lines that fit the picture's width."""
    return textwrap.wrap(sentence or "", width=(WIDTH - 2 * MARGIN) * 2 // LABEL)


def legend(pen: ImageDraw.ImageDraw, corner: tuple[int, int], kinds: Sequence[Kind]) -> None:
    x, y = corner
    for kind in kinds:
        pen.rectangle((x, y, x + LABEL, y + LABEL), fill=COLOURS[kind])
        pen.text((x + LABEL + 6, y - 2), LABELS[kind], fill=INK, font=font(LABEL))
        x += LABEL + 26 + int(pen.textlength(LABELS[kind], font=font(LABEL)))


def step_map(pen: ImageDraw.ImageDraw, record: RunRecord, corner: tuple[int, int], cell: int) -> None:
    """A row per chunk, a column per own step."""
    left, top = corner
    gap = 1 if cell > 4 else 0
    for row, kinds in enumerate(record.kinds):
        for column, kind in enumerate(kinds):
            x, y = left + column * cell, top + row * cell
            pen.rectangle((x, y, x + cell - 1 - gap, y + cell - 1 - gap), fill=COLOURS[kind])
    chunks, steps = len(record.kinds), record.started.steps
    for row in ticks_of(chunks, LABEL, cell):
        pen.text((left - 8, top + (row + 0.5) * cell), str(row), fill=INK, font=font(LABEL), anchor="rm")
    for column in ticks_of(steps, 2 * LABEL, cell):
        pen.text(
            (left + (column + 0.5) * cell, top + chunks * cell + 2),
            str(column),
            fill=INK,
            font=font(LABEL),
            anchor="mt",
        )
    pen.text((left - 8, top - 4), "chunk", fill=SOFT, font=font(LABEL), anchor="rb")
    pen.text((left + steps * cell + 10, top + chunks * cell + 2), "own step", fill=SOFT, font=font(LABEL), anchor="lt")


def ticks_of(count: int, room: int, cell: int) -> range:
    """Which of ``count`` places get a number, so that the numbers do not touch."""
    return range(0, count, max(1, -(-room // cell)))


def kv_plot(pen: ImageDraw.ImageDraw, record: RunRecord, corner: tuple[int, int], width: int) -> None:
    """K/V tokens per layer over the ticks, the buffer's size, the budget, and where history was compressed."""
    left, top = corner
    started, bottom = record.started, corner[1] + PLOT_HEIGHT
    last = max(tick for tick, _ in record.kv_tokens) or 1
    highest = max(started.kv_tokens, *(tokens for _, tokens in record.kv_tokens))

    def place(tick: float, tokens: float) -> tuple[float, float]:
        return left + width * tick / last, bottom - PLOT_HEIGHT * tokens / highest

    corners = [place(tick, tokens) for tick, tokens in record.kv_tokens]
    pen.polygon([(left, bottom), *corners, (corners[-1][0], bottom)], fill="#CFE8F7")
    pen.line(corners, fill=COLOURS["computed"], width=2)
    pen.line((left, bottom, left + width, bottom), fill=SOFT)
    lines = [
        (started.kv_tokens, SOFT, f"allocated {started.kv_tokens} K/V tokens a layer, {started.kv_bytes / 1e6:.1f} MB")
    ]
    if started.budget_tokens is not None and started.budget_tokens < started.kv_tokens:
        lines.append((started.budget_tokens, BUDGET, f"budget {started.budget_tokens}"))
    for tokens, colour, text in lines:
        (_, y), end = place(0, tokens), left + width
        pen.line((left, y, end, y), fill=colour)
        pen.text((end, y - 2), text, fill=colour, font=font(LABEL), anchor="rb")
    for event in record.compressions:
        x, y = place(event.tick, event.tokens_after)
        pen.polygon([(x - 5, y - 8), (x + 5, y - 8), (x, y)], fill=MARK)
    pen.text((left, bottom + 4), "tick 0", fill=SOFT, font=font(LABEL))
    pen.text((left + width, bottom + 4), str(last), fill=SOFT, font=font(LABEL), anchor="ra")
