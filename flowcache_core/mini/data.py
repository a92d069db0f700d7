"""Videos of one coloured shape that moves along an axis and bounces off the walls: what the mini model is trained on.

Everything about a clip follows from its `Clip` (a few numbers), and a list of clips from a seed, so data sets need no
files. Rendering is a signed distance with one pixel of anti-aliasing, for all frames of a batch at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FRAME_SIZE = 64
SPEED = 1.0  # pixels per frame
MIN_RADIUS, MAX_RADIUS = 10.0, 13.0
ROOM = 16.0  # pixels a shape can travel before it first meets a wall
BACKGROUND = (0.06, 0.06, 0.09)

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.75, 0.20),
    "blue": (0.15, 0.30, 0.95),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.65, 0.20, 0.85),
    "white": (0.95, 0.95, 0.95),
}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

# Half width and half height of each shape's bounding box, in radii. Square and triangle are a little smaller than the
# circle's equal so that all three keep room to move.
HALF_SIZES = {"circle": (1.0, 1.0), "square": (0.9, 0.9), "triangle": (1.13, 0.98)}


@dataclass(frozen=True)
class Clip:
    """One clip. `x`, `y`: centre of the shape's bounding box in the first frame, in pixels from the top left."""

    colour: str
    shape: str
    direction: str
    radius: float
    x: float
    y: float

    @property
    def prompt(self) -> str:
        """The sentence that describes the clip."""
        return f"a {self.colour} {self.shape} moving {self.direction}"

    @property
    def half_size(self) -> tuple[float, float]:
        """Half width and half height of the shape's bounding box in pixels."""
        width, height = HALF_SIZES[self.shape]
        return width * self.radius, height * self.radius


def random_clips(count: int, seed: int) -> list[Clip]:
    """`count` clips; every run of 72 holds each colour, shape and direction combination once."""
    generator = torch.Generator().manual_seed(seed)
    combinations = [(c, s, d) for c in COLOURS for s in SHAPES for d in DIRECTIONS]
    clips: list[Clip] = []
    while len(clips) < count:
        for index in torch.randperm(len(combinations), generator=generator).tolist():
            colour, shape, direction = combinations[index]
            clips.append(_place(colour, shape, direction, torch.rand(3, generator=generator).tolist()))
    return clips[:count]


def _place(colour: str, shape: str, direction: str, random: Sequence[float]) -> Clip:
    radius = MIN_RADIUS + (MAX_RADIUS - MIN_RADIUS) * random[0]
    centre: list[float] = []
    for step, half, chance in zip(DIRECTIONS[direction], HALF_SIZES[shape], random[1:]):
        low, high = half * radius, FRAME_SIZE - half * radius
        # Keep ROOM pixels free ahead of the shape along the axis it moves on.
        low, high = low + ROOM * (step < 0), high - ROOM * (step > 0)
        centre.append(low + (high - low) * chance)
    return Clip(colour, shape, direction, radius, *centre)


def positions(clips: Sequence[Clip], frames: int) -> Tensor:
    """Centres [N, frames, 2] (x, y) in pixels, reflected at the walls."""
    start = torch.tensor([(c.x, c.y) for c in clips])
    step = torch.tensor([DIRECTIONS[c.direction] for c in clips], dtype=torch.float32) * SPEED
    low = torch.tensor([c.half_size for c in clips])
    span = FRAME_SIZE - 2 * low
    travelled = (start - low)[:, None] + step[:, None] * torch.arange(frames).reshape(1, -1, 1)
    # A reflected path is a triangle wave: unfold the box to twice its span.
    phase = travelled.remainder(2 * span[:, None])
    return low[:, None] + torch.minimum(phase, 2 * span[:, None] - phase)


def render(clips: Sequence[Clip], frames: int, *, at: Tensor | None = None) -> Tensor:
    """Video [N, 3, frames, 64, 64] in -1..1. `at` [N, frames, 2] replaces the clips' own positions."""
    centre = positions(clips, frames) if at is None else at
    pixel = torch.arange(FRAME_SIZE) + 0.5
    dx = pixel.reshape(1, 1, 1, -1) - centre[:, :, 0, None, None]
    dy = pixel.reshape(1, 1, -1, 1) - centre[:, :, 1, None, None]
    distance = torch.empty(len(clips), frames, FRAME_SIZE, FRAME_SIZE)
    for shape in SHAPES:
        rows = torch.tensor([i for i, clip in enumerate(clips) if clip.shape == shape], dtype=torch.long)
        if len(rows):
            half = torch.tensor([clips[i].half_size for i in rows.tolist()]).reshape(-1, 2, 1, 1, 1)
            distance[rows] = outline_distance(shape, dx[rows], dy[rows], half[:, 0], half[:, 1])
    cover = (0.5 - distance).clamp(0, 1)[:, None]
    colour = torch.tensor([COLOURS[clip.colour] for clip in clips]).reshape(-1, 3, 1, 1, 1)
    back = torch.tensor(BACKGROUND).reshape(1, 3, 1, 1, 1)
    return (back + (colour - back) * cover) * 2 - 1


def outline_distance(shape: str, dx: Tensor, dy: Tensor, half_width: Tensor, half_height: Tensor) -> Tensor:
    """Signed distance in pixels to the outline, negative inside (corners are not rounded)."""
    if shape == "circle":
        return (dx.square() + dy.square()).sqrt() - half_width
    if shape == "square":
        return torch.maximum(dx.abs() - half_width, dy.abs() - half_height)
    # Triangle, point up: the base line and the two slanted sides, which are mirror images.
    slope = torch.hypot(2 * half_height, half_width)
    side = (2 * half_height * dx.abs() - half_width * (dy + half_height)) / slope
    return torch.maximum(dy - half_height, side)
