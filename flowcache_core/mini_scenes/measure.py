"""What a scene's video shows: which shapes in which lane and chunk, how they move, the camera's pan and the light.

Plain image arithmetic on decoded frames, with nothing learned, so that it can judge the model. Every pixel is given to
the colour it is nearest to: a shape's, the sky's, the hills' or the post's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..mini.data import COLOURS
from . import data

LANE_HALF = 19  # pixels above and below a lane's mean height that count as the lane
PRESENT = 90  # pixels of shapes' colours in a lane from which on it is taken
CLIPPED = 2  # pixels: a shape nearer than this to a side of the picture may be cut off
SKY_ROWS = slice(0, 6)  # above every shape and hill
HILL_ROWS = slice(122, 128)  # below every shape
GREYS = (0.8, 0.9, 1.0, 1.1, 1.2)  # the stripes on the hills, relative to their colour
FILL = {"circle": 0.785, "square": 0.97, "triangle": 0.53}  # share of the bounding box


@dataclass(frozen=True)
class Seen:
    """One lane in one frame. `left`, `right`: of the bounding box, in pixels; `y`: its middle."""

    colour: str
    area: int
    left: int
    right: int
    y: float
    fill: float

    @property
    def whole(self) -> bool:
        """Whether no side of the picture cuts it off."""
        return self.left > CLIPPED and self.right < data.FRAME_SIZE - 1 - CLIPPED


@dataclass(frozen=True)
class Track:
    """One lane through a video: what is there in each frame, or None."""

    frames: tuple[Seen | None, ...]

    def in_chunk(self, chunk: int) -> list[Seen]:
        """What is seen in the frames of a chunk."""
        return [seen for seen in self.frames[frames_of(chunk)] if seen]

    def present(self, chunk: int) -> bool:
        """Whether there is a shape in most frames of a chunk."""
        return 2 * len(self.in_chunk(chunk)) > len(self.frames[frames_of(chunk)])

    def colour(self, chunk: int) -> str:
        """The colour of most frames of a chunk."""
        return _most([seen.colour for seen in self.in_chunk(chunk)])

    def shape(self, chunk: int) -> str:
        """The shape that most whole views in a chunk resemble, by how they fill their bounding boxes."""
        return _most([nearest_fill(seen.fill) for seen in self.in_chunk(chunk) if seen.whole])

    def velocity(self, first: int, last: int) -> float:
        """Pixels per frame to the right between two frames, by the sides that the picture does not cut; or NaN."""
        ends = [(i, seen) for i, seen in enumerate(self.frames[first:last]) if seen]
        if len(ends) < 2:
            return math.nan
        (i, start), (j, end) = ends[0], ends[-1]
        edge = data.FRAME_SIZE - 1 - CLIPPED
        moved = []
        if min(start.left, end.left) > CLIPPED:
            moved.append((end.left - start.left) / (j - i))
        if max(start.right, end.right) < edge:
            moved.append((end.right - start.right) / (j - i))
        return sum(moved) / len(moved) if moved else math.nan


@dataclass(frozen=True)
class Measured:
    """One video: a track for each lane, and per chunk the camera's velocity in pixels per frame and the light."""

    lanes: dict[str, Track]
    pans: tuple[float, ...]
    lights: tuple[str, ...]

    @property
    def chunks(self) -> int:
        return len(self.pans)


def frames_of(chunk: int) -> slice:
    """The pixel frames of a chunk."""
    return slice(data.first_frame(chunk), data.first_frame(chunk + 1))


def measure(video: Tensor) -> Measured:
    """Measures one video [3, T, 128, 128] in -1..1, T = 12 * chunks - 3."""
    picture = (video.float() + 1) / 2
    names, owner = owners(picture)
    chunks = data.chunk_of(picture.shape[1] - 1) + 1
    sky = picture[:, :, SKY_ROWS].mean((2, 3))
    lights = list(data.SKY)
    light = torch.cdist(sky.T, torch.tensor([data.SKY[name] for name in lights])).argmin(1).tolist()
    pan = _pan(picture)
    return Measured(
        lanes={lane: _track(owner, names, y) for lane, y in data.LANES.items()},
        pans=tuple(pan[frames_of(chunk)][1:].median().item() for chunk in range(chunks)),
        lights=tuple(_most([lights[i] for i in light[frames_of(chunk)]]) for chunk in range(chunks)),
    )


def owners(picture: Tensor) -> tuple[list[str], Tensor]:
    """Names of the shapes' colours, and for every pixel [T, 128, 128] the number of its colour or -1."""
    names = list(COLOURS)
    ground = [tuple(grey * c for c in colour) for colour in data.GROUND.values() for grey in GREYS]
    palette = torch.tensor([*COLOURS.values(), *data.SKY.values(), *ground, data.POST])
    flat = picture.permute(1, 2, 3, 0)
    owner = torch.stack([torch.cdist(frame.flatten(0, 1), palette).argmin(1) for frame in flat])
    owner = owner.masked_fill(owner >= len(names), -1)
    return names, owner.view(flat.shape[:3])


def _track(owner: Tensor, names: list[str], y: float) -> Track:
    top, bottom = int(y) - LANE_HALF, int(y) + LANE_HALF
    return Track(tuple(seen_in(frame, names, top) for frame in owner[:, top:bottom]))


def seen_in(lane: Tensor, names: list[str], top: int) -> Seen | None:
    """The shape in some rows [rows, W] of one frame, the first of which is row `top` of the picture."""
    counts = torch.bincount(lane[lane >= 0], minlength=len(names))
    if counts.sum() < PRESENT:
        return None
    colour = int(counts.argmax())
    # Edges are mixtures that may be nearest to another colour: what counts is the box of all that is no background.
    mask = lane >= 0
    rows, columns = (mask.sum(1) > 2).nonzero().flatten(), (mask.sum(0) > 2).nonzero().flatten()
    if len(rows) == 0 or len(columns) == 0:
        return None
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    middle = top + (int(rows[0]) + int(rows[-1])) / 2
    area = int(mask.sum())
    return Seen(names[colour], area, int(columns[0]), int(columns[-1]), middle, box.float().mean().item())


def _pan(picture: Tensor) -> Tensor:
    """The camera's velocity in each frame against the one four before (the first four: none), in pixels per frame.

    The stripes at the foot of the hills are a wave of known length: what moves is its phase.
    """
    foot = picture[:, :, HILL_ROWS].mean((0, 2))
    foot = foot / foot.mean(1, keepdim=True) - 1
    angle = 2 * math.pi * (torch.arange(data.FRAME_SIZE) + 0.5) / data.SHADE[1]
    # A whole number of waves, seen through a window that fades at the sides.
    window = torch.hann_window(data.FRAME_SIZE, periodic=False)
    real, imaginary = ((foot * window) @ part for part in (angle.cos(), -angle.sin()))
    phase = torch.complex(real, imaginary)
    turned = torch.zeros(len(phase))
    step = min(4, len(phase) - 1)
    turned[step:] = torch.angle(phase[step:] * phase[:-step].conj())
    return turned * data.SHADE[1] / (2 * math.pi) / step


def nearest_fill(fill: float) -> str:
    return min(FILL, key=lambda name: abs(FILL[name] - fill))


def _most(names: list[str]) -> str:
    return max(sorted(set(names)), key=names.count) if names else "none"
