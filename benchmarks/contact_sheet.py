"""Several videos as one picture: a row each, frames from left to right."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

FRAMES, FACTOR, LABEL = 10, 2, 300  # frames a row, enlargement, pixels for the row's name
PAPER, INK = (255, 255, 255), (20, 20, 20)


def contact_sheet(videos: Mapping[str, Tensor]) -> Image.Image:
    """Videos ``[T, H, W, 3]`` uint8 of one size by name; frames evenly from the first to the last."""
    first = next(iter(videos.values()))
    count, (height, width) = min(FRAMES, len(first)), first.shape[1:3]
    picks = torch.linspace(0, len(first) - 1, count).round().long()
    cell = (width * FACTOR, height * FACTOR)
    sheet = Image.new("RGB", (LABEL + count * cell[0], len(videos) * cell[1]), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for row, (name, video) in enumerate(videos.items()):
        draw.text((8, (row + 0.5) * cell[1]), name, fill=INK, font=font, anchor="lm")
        for column, frame in enumerate(video[picks]):
            picture = Image.fromarray(frame.numpy()).resize(cell, Image.Resampling.NEAREST)
            sheet.paste(picture, (LABEL + column * cell[0], row * cell[1]))
    return sheet
