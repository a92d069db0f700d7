"""Where the compute went, in the report's picture: a tile for every chunk of which steps were computed in part."""

from __future__ import annotations

from PIL import Image, ImageDraw
from torch import Tensor

from ....flowcache_core.report import places
from ....flowcache_core.report.record import RunRecord
from .theme import LABEL, LINE, MARGIN, WIDTH, Theme

ACROSS, GAP = 3, 12
HIGHEST = 3000  # pixels from the top: what lies below is left out


def drawn(page: Image.Image, record: RunRecord, images: Tensor | None, top: float, theme: Theme) -> float:
    """From ``top`` on; returns where the next thing may begin. images ``[T, H, W, 3]`` from 0 to 1: the video."""
    pen = ImageDraw.Draw(page)
    title = theme.says(f"{places.sentence(record)}; light: seldom, dark: often")
    y = theme.text(pen, (MARGIN, top), theme.wrapped(title), theme.ink) + 8
    video = None if images is None else (images[..., :3] * 255).round().clamp(0, 255).byte().cpu().numpy()
    shown = places.tiles(record, video)
    across = min(ACROSS, len(shown))
    wide = (WIDTH - 2 * MARGIN - (across - 1) * GAP) // across
    high = round(shown[0].picture.shape[0] * wide / shown[0].picture.shape[1])
    row = high + LINE + GAP
    for number, tile in enumerate(shown):
        x, place = MARGIN + number % across * (wide + GAP), y + number // across * row
        if place + row > HIGHEST:
            break
        page.paste(Image.fromarray(tile.picture).resize((wide, high), Image.Resampling.NEAREST), (x, round(place)))
        words = f"{tile.chunk}: {tile.least}-{tile.most} / {tile.steps}"
        pen.text((x, place + high + 2), words, fill=theme.soft, font=theme.font(LABEL))
    return min(HIGHEST, y + -(-len(shown) // across) * row)
