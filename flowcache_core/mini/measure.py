"""What a generated clip shows: is there one shape, of which colour, how large, where, and which shape?

Plain image arithmetic on decoded frames, with nothing learned, so that it can judge the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import data

COVER = 0.35  # a pixel belongs to the shape when it is this far from the background (RGB distance, 0..1 each)
JOURNEY = 16  # pixel frames over which the direction is judged: no bounce comes earlier


@dataclass(frozen=True)
class Measured:
    """Per frame of one clip: nearest colour name, area and centre in pixels; per clip: direction and shape."""

    colours: tuple[str, ...]
    areas: Tensor
    centres: Tensor
    direction: str
    shape: str

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "areas": self.areas.tolist(), "centres": self.centres.tolist()}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Measured:
        areas, centres = torch.tensor(values["areas"]), torch.tensor(values["centres"])
        return cls(tuple(values["colours"]), areas, centres, values["direction"], values["shape"])


def measure(video: Tensor) -> Measured:
    """Measures one clip [3, T, 64, 64] in -1..1."""
    picture = (video + 1) / 2
    back = torch.tensor(data.BACKGROUND).reshape(3, 1, 1, 1)
    mask = (picture - back).norm(dim=0) > COVER
    areas = mask.flatten(1).sum(1).float()
    count = areas.clamp_min(1)
    mean_colour = (picture * mask).flatten(2).sum(2) / count
    names = list(data.COLOURS)
    palette = torch.tensor([data.COLOURS[name] for name in names])
    nearest = torch.cdist(mean_colour.T, palette).argmin(1)
    pixel = torch.arange(data.FRAME_SIZE) + 0.5
    weight = mask.float()
    centres = torch.stack([(weight.sum(1) * pixel).sum(1) / count, (weight.sum(2) * pixel).sum(1) / count], 1)
    return Measured(
        colours=tuple(names[i] if area > 0 else "none" for i, area in zip(nearest.tolist(), areas.tolist())),
        areas=areas,
        centres=centres,
        direction=_direction(centres[:JOURNEY]),
        shape=_shape(mask),
    )


def _direction(centres: Tensor) -> str:
    dx, dy = (centres[-1] - centres[0]).tolist()
    if max(abs(dx), abs(dy)) < 0.3 * data.SPEED * (len(centres) - 1):
        return "none"
    horizontal = abs(dx) >= abs(dy)
    return ("right" if dx > 0 else "left") if horizontal else ("down" if dy > 0 else "up")


def _shape(masks: Tensor) -> str:
    """The shape most frames resemble, by how their pixels fill the bounding box: pi / 4, all, or half of it."""
    votes = dict.fromkeys((*data.SHAPES, "none"), 0)
    for mask in masks:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        if len(rows) == 0:
            votes["none"] += 1
            continue
        box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].float()
        fill = {"circle": 0.785, "square": 0.99, "triangle": 0.53}
        votes[min(fill, key=lambda name: abs(fill[name] - box.mean().item()))] += 1
    return max(votes, key=votes.__getitem__)
