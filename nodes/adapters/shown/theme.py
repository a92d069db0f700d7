"""Colours and letters of the pictures, for a dark page and a light one.

Cells keep their hues (those of ``report/figure.py``, Okabe and Ito's) on both; what is nearly as dark as the page or as
light gets another. Letters are large: a node shows a picture at less than half its size. Pictures speak Chinese on a
Chinese page where the machine has letters for it, English everywhere else: PIL brings Latin letters only.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ....flowcache_core.report.figure import COLOURS
from ....flowcache_core.report.record import Kind
from .page import Page
from .said import chinese

WIDTH, MARGIN = 960, 28
TITLE, LABEL = 34, 27
UNIT = re.compile(r"(\d) (?=(?:MB|GB|s|dB|x|%|min|秒|分|小时|倍|步|块)(?![a-z]))")
LINE = LABEL + 9  # from one row of labels to the next
FONTS = (
    *("msyh.ttc", "simhei.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "STHeiti Medium.ttc"),
    *("NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "SourceHanSansSC-Regular.otf", "wqy-microhei.ttc"),
    *("wqy-zenhei.ttc", "DroidSansFallbackFull.ttf", "DroidSansFallback.ttf"),
)
"""Chinese letters that come with Windows, macOS and Linux, by the names of their files; PIL knows where to look."""


@dataclass(frozen=True)
class Theme:
    """paper: behind everything. grid: faint lines. budget, mark: of a limit, and of what happened at a tick. letters:
    file of the Chinese ones, None for Latin letters and English words.
    """

    paper: str
    ink: str
    soft: str
    grid: str
    budget: str
    mark: str
    area: str
    cells: Mapping[Kind, str]
    letters: str | None = None

    @property
    def language(self) -> str:
        return "en" if self.letters is None else "zh"

    def says(self, sentence: str) -> str:
        return sentence if self.letters is None else chinese(sentence)

    def font(self, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        return ImageFont.load_default(size) if self.letters is None else letters_of(self.letters, size)

    def length(self, words: str, size: int = LABEL) -> float:
        """In pixels."""
        return self.font(size).getlength(words)

    def wrapped(self, sentence: str | None, size: int = LABEL, width: int = WIDTH - 2 * MARGIN) -> list[str]:
        """Lines that are no wider than ``width`` pixels."""
        whole = UNIT.sub("\\1\u00a0", sentence or "")  # a number and its unit stay together
        letters, lines = max(8, 3 * width // size), [whole]
        while letters > 8:
            lines = textwrap.wrap(whole, letters)
            if all(self.length(line, size) <= width for line in lines):
                break
            letters -= 2
        return [line.replace("\u00a0", " ") for line in lines]  # the host's letters have no sign for it

    def text(
        self,
        pen: ImageDraw.ImageDraw,
        corner: tuple[float, float],
        lines: Iterable[str],
        colour: str,
        size: int = LABEL,
    ) -> float:
        """Lines one under the other; where the next would begin."""
        x, y = corner
        for line in lines:
            pen.text((x, y), line, fill=colour, font=self.font(size))
            y += size + 9
        return y


LIGHT = Theme("#FFFFFF", "#222222", "#6B6B6B", "#E2E2E2", "#C34A00", "#B3206A", "#CFE8F7", COLOURS)
DARK = Theme(
    "#1E1E1E", "#E4E4E4", "#A8A8A8", "#3A3A3A", "#FF8A3D", "#FF7AB8", "#123B54",
    {**COLOURS, "computed": "#1C86C8", "forced": "#9BD0F5", "pending": "#3A3A3A", "not finite": "#E0455F"},
)  # fmt: skip


def theme_of(page: Page) -> Theme:
    theme = DARK if page.dark else LIGHT
    return replace(theme, letters=chinese_letters()) if page.language.startswith("zh") else theme


@cache
def chinese_letters() -> str | None:
    """The first of :data:`FONTS` that this machine has."""
    for name in FONTS:
        with suppress(OSError):
            return str(ImageFont.truetype(name, LABEL).path)
    return None


@cache
def letters_of(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


def tensor(image: Image.Image) -> Tensor:
    """``[1, H, W, 3]`` from 0 to 1."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)[None]


def ticks_of(count: int, room: float, cell: float) -> range:
    """Which of ``count`` places get a number, so that numbers of ``room`` pixels do not touch: every 1st, 2nd, 5th."""
    least = max(1.0, room / cell)
    step = next(factor * 10**power for power in range(9) for factor in (1, 2, 5) if factor * 10**power >= least)
    return range(0, count, step)
