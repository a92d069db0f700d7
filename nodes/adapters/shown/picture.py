"""The chunk x step map with the K/V budget as the host's IMAGE, drawn with PIL, which every host has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw
from torch import Tensor

from ....flowcache_core.report.figure import KINDS, map_codes
from ....flowcache_core.report.record import Kind, RunRecord
from . import densities, places
from .page import Page
from .theme import LABEL, LINE, MARGIN, TITLE, WIDTH, Theme, tensor, theme_of, ticks_of

GUTTER = 72  # left of the map, for numbers of chunks
HIGHEST_MAP, HIGHEST_CELL, LOWEST_CELL = 620, 44, 3
PLOT_HEIGHT = 170
NAMES: dict[Kind, str] = {
    "given": "given",
    "warm-up": "warm-up",
    "computed": "computed",
    "forced": "forced",
    "part": "in part",
    "reused": "reused",
    "not finite": "not finite",
    "pending": "not run",
}


@dataclass(frozen=True)
class Cells:
    """Where the map lies, and how large a cell is."""

    left: int
    top: float
    width: float
    height: float

    def box(self, chunk: int, step: int) -> tuple[int, int, int, int]:
        """Corners of a cell, with a gap to the next where there is room for one."""
        right, below = (int(self.width > 5), int(self.height > 5))
        x, y = self.left + step * self.width, self.top + chunk * self.height
        return round(x), round(y), round(x + self.width) - 1 - right, round(y + self.height) - 1 - below


def draw(record: RunRecord, title: Callable[[str], str], page: Page, images: Tensor | None = None) -> Tensor:
    """``[1, H, W, 3]`` from 0 to 1: what was computed and reused, of the attention too where it is sparse, and
    below it the K/V tokens held at every tick; last, where steps were computed in part, how often every place was, over
    the decoded video ``images [T, H, W, 3]`` where that is known.
    """
    theme = theme_of(page)
    image = Image.new("RGB", (WIDTH, 4000), theme.paper)
    pen = ImageDraw.Draw(image)
    y = theme.text(pen, (MARGIN, MARGIN), theme.wrapped(title(theme.language), TITLE), theme.ink, TITLE) + 4
    y = theme.text(pen, (MARGIN, y), theme.wrapped(theme.says(record.fault or "")), theme.cells["not finite"])
    y = legend(pen, (MARGIN, y + 4), [kind for kind in KINDS if kind in present(record)], theme)
    chunks, steps = map_codes(record).shape
    width = WIDTH - 2 * MARGIN - GUTTER
    cells = Cells(MARGIN + GUTTER, y + LINE, width / steps, max(LOWEST_CELL, min(HIGHEST_CELL, HIGHEST_MAP / chunks)))
    step_map(pen, record, cells, theme)
    densities.bars(pen, record, cells.box)
    y = cells.top + chunks * cells.height + 2 * LINE + 8
    if densities.rows(record):
        y = densities.strip(pen, record, (cells.left, y), width, theme)
    if record.kv_tokens and record.started.kv_tokens:
        y = kv_plot(pen, record, (cells.left, y), width, theme)
    if record.places:
        y = places.drawn(image, record, images, y + LINE, theme)
    return tensor(image.crop((0, 0, WIDTH, round(y) + MARGIN)))


def draw_sentence(sentence: str, page: Page) -> Tensor:
    """``[1, H, W, 3]``: a sentence in the place of the map."""
    theme = theme_of(page)
    lines = theme.wrapped(theme.says(sentence), TITLE)
    image = Image.new("RGB", (WIDTH, 2 * MARGIN + len(lines) * (TITLE + 9)), theme.paper)
    theme.text(ImageDraw.Draw(image), (MARGIN, MARGIN), lines, theme.ink, TITLE)
    return tensor(image)


def present(record: RunRecord) -> set[Kind]:
    return {kind for row in record.kinds for kind in row}


def legend(pen: ImageDraw.ImageDraw, corner: tuple[float, float], kinds: Sequence[Kind], theme: Theme) -> float:
    """Colours and what they stand for, in as many rows as they need; where the next row would begin."""
    left, y = corner
    x = left
    for kind in kinds:
        name = theme.says(NAMES[kind])
        width = LABEL + 8 + theme.length(name) + 24
        if x > left and x + width > WIDTH - MARGIN:
            x, y = left, y + LINE
        pen.rectangle((x, y + 4, x + LABEL - 4, y + LABEL), fill=theme.cells[kind])
        pen.text((x + LABEL + 4, y), name, fill=theme.ink, font=theme.font(LABEL))
        x += width
    return y + LINE


def step_map(pen: ImageDraw.ImageDraw, record: RunRecord, cells: Cells, theme: Theme) -> None:
    """A row per chunk, a column per own step."""
    for row, kinds in enumerate(record.kinds):
        for column, kind in enumerate(kinds):
            pen.rectangle(cells.box(row, column), fill=theme.cells[kind])
    for step in record.steps_taken:
        if step.action == "part":  # filled from below as far as it was computed
            left, top, right, below = cells.box(step.chunk, step.step)
            filled = below - round((below - top) * step.computed_share)
            pen.rectangle((left, filled, right, below), theme.cells["computed"])
    chunks, steps = len(record.kinds), record.started.steps
    bottom = cells.top + chunks * cells.height
    for window in record.windows[1:]:
        y = cells.top + window.first_chunk * cells.height - 1
        pen.line((cells.left, y, WIDTH - MARGIN, y), fill=theme.ink, width=2)
    for row in ticks_of(chunks, LABEL, cells.height):
        middle = cells.top + (row + 0.5) * cells.height
        pen.text((cells.left - 12, middle), str(row), fill=theme.ink, font=theme.font(LABEL), anchor="rm")
    for column in ticks_of(steps, len(str(steps)) * LABEL * 0.62 + 12, cells.width):
        middle = cells.left + (column + 0.5) * cells.width
        pen.text((middle, bottom + 6), str(column), fill=theme.ink, font=theme.font(LABEL), anchor="mt")
    pen.text((MARGIN, cells.top - 4), theme.says("chunk"), fill=theme.soft, font=theme.font(LABEL), anchor="lb")
    pen.text(
        (WIDTH - MARGIN, bottom + LINE), theme.says("own step"), fill=theme.soft, font=theme.font(LABEL), anchor="rt"
    )


def kv_plot(
    pen: ImageDraw.ImageDraw, record: RunRecord, corner: tuple[float, float], width: int, theme: Theme
) -> float:
    """K/V tokens per layer over the ticks, the buffer's size, the budget, and where history was compressed: first what
    the lines are, then the lines. Returns where the next thing may begin.
    """
    left, y = corner
    started = record.started
    allocated = f"allocated {started.kv_tokens} ({started.kv_bytes / 1e6:.1f} MB)"
    entries = [
        (None, theme.cells["computed"], theme.says("K/V tokens a layer")),
        (started.kv_tokens, theme.soft, theme.says(allocated)),
    ]
    if started.budget_tokens is not None and started.budget_tokens < started.kv_tokens:
        entries.append((started.budget_tokens, theme.budget, theme.says(f"budget {started.budget_tokens}")))
    x = float(left)
    for _, colour, label in entries:
        long = 34 + theme.length(label) + 20
        if x > left and x + long > left + width:
            x, y = left, y + LINE
        pen.line((x, y + LABEL / 2 + 2, x + 24, y + LABEL / 2 + 2), fill=colour, width=4)
        pen.text((x + 32, y), label, fill=theme.ink, font=theme.font(LABEL))
        x += long
    top = y + LINE + 8
    bottom = top + PLOT_HEIGHT
    last = max(tick for tick, _ in record.kv_tokens) or 1
    highest = max(started.kv_tokens, *(tokens for _, tokens in record.kv_tokens))

    def place(tick: float, tokens: float) -> tuple[float, float]:
        return left + width * tick / last, bottom - PLOT_HEIGHT * tokens / highest

    corners = [place(tick, tokens) for tick, tokens in record.kv_tokens]
    pen.polygon([(corners[0][0], bottom), *corners, (corners[-1][0], bottom)], fill=theme.area)
    for tokens, colour, _ in entries:
        if tokens is not None:
            (_, at), end = place(0, tokens), left + width
            pen.line((left, at, end, at), fill=colour, width=3)
    if len(corners) > 1:
        pen.line(corners, fill=theme.cells["computed"], width=4)
    pen.line((left, bottom, left + width, bottom), fill=theme.soft, width=2)
    for event in record.compressions:
        x, at = place(event.tick, event.tokens_after)
        pen.polygon([(x - 8, at - 13), (x + 8, at - 13), (x, at)], fill=theme.mark)
    pen.text((left, bottom + 8), theme.says("tick 0"), fill=theme.soft, font=theme.font(LABEL))
    pen.text((left + width, bottom + 8), str(last), fill=theme.soft, font=theme.font(LABEL), anchor="ra")
    if record.compressions:
        pen.text(
            (left + width / 2, bottom + 8),
            theme.says("triangles: compressed"),
            fill=theme.mark,
            font=theme.font(LABEL),
            anchor="ma",
        )
    return bottom + 8 + LINE
