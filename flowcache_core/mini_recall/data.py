"""Videos in which everything is covered for a while, and is there again: clips that ask a model to remember.

Each is a part of a scene, 64 x 64 pixels around one resting shape before the hills. A post as wide as the picture moves
in, stays for three chunks and moves on. Half of the clips begin with what is to be remembered; the others begin
covered, so that it is seen in the second chunk, and a history that keeps the first one alone does not hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..mini_scenes import data as scenes
from ..mini_scenes.data import ORDINALS, POST, Scene, first_frame

FRAME_SIZE = 64
CLOSES = (1, 2)  # chunks in which the post may come in
COVERED = 3  # chunks from then on until it leaves
SPEED = 16.0  # pixels per frame of its edges: one latent frame for the whole picture


@dataclass(frozen=True)
class Clip:
    """scene: one shape at rest, the camera still; left, top: of the part of it that is shown, in pixels.

    closes: the chunk in which the post comes in; moving: where it moves.
    """

    scene: Scene
    left: int
    top: int
    closes: int
    moving: str

    @property
    def prompt(self) -> str:
        """The phrases of the shape, the light and the post."""
        actor = self.scene.actors[0]
        post = f"a post moving {self.moving} enters {ORDINALS[self.closes]}"
        return f"a {actor.colour} {actor.shape} resting, by {self.scene.light}, {post}"

    @property
    def seen(self) -> int:
        """The chunk before the post comes in: that of which everything is to be remembered."""
        return self.closes - 1

    @property
    def absent(self) -> range:
        """Chunks of which no frame shows any of it."""
        return range(self.closes + 1, self.closes + COVERED)

    @property
    def again(self) -> int:
        """The chunk in which it is seen again."""
        return self.closes + COVERED


CHUNKS = CLOSES[-1] + COVERED + 1  # of the longest clip


def random_clips(count: int, seed: int) -> list[Clip]:
    """`count` clips; every second one begins covered."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i, scene in enumerate(scenes.random_scenes(count, seed)):
        first = scene.actors[0]
        half_width, half_height = first.half_size
        inside = min(max(first.x, half_width), scenes.FRAME_SIZE - half_width)
        actor = replace(first, motion="resting", enters=0, turns=None, x=inside)
        still = replace(scene, actors=(actor,), pan="still", back=None, changes=None, post=None)
        (left, top), moving = torch.rand(2, generator=generator).tolist(), torch.rand((), generator=generator).item()
        x = _corner(actor.x, half_width, left)
        y = _corner(actor.y, half_height, top)
        found.append(Clip(still, x, y, CLOSES[i % 2], "left" if moving < 0.5 else "right"))
    return found


def _corner(middle: float, half: float, share: float) -> int:
    """Where a part of the picture may begin that has a shape of this half size in it: `share` of the way."""
    low, high = max(0.0, middle + half - FRAME_SIZE), min(middle - half, scenes.FRAME_SIZE - FRAME_SIZE)
    return round(low + (high - low) * share)


def render(clips: Sequence[Clip], frames: int, start: int = 0) -> Tensor:
    """Video [N, 3, frames, 64, 64] in -1..1 from frame `start` on."""
    post = torch.tensor(POST).reshape(3, 1, 1, 1) * 2 - 1
    whole = scenes.render([clip.scene for clip in clips], 1).expand(-1, -1, frames, -1, -1)  # nothing moves
    videos = []
    for clip, video in zip(clips, whole):
        part = video[:, :, clip.top : clip.top + FRAME_SIZE, clip.left : clip.left + FRAME_SIZE]
        videos.append(part.lerp(post, _cover(clip, start, start + frames)))
    return torch.stack(videos)


def _cover(clip: Clip, start: int, end: int) -> Tensor:
    """How much of each column is covered [frames, 1, 64], 0 to 1."""
    time = torch.arange(start, end, dtype=torch.float32)
    column = torch.arange(FRAME_SIZE) + 0.5
    if clip.moving == "left":
        column = column.flip(0)

    def passed(chunk: int) -> Tensor:
        """Which columns an edge has passed that comes in with this chunk."""
        edge = SPEED * (time + 1 - first_frame(chunk))
        return (edge[:, None] - column[None] + 0.5).clamp(0, 1)

    covered = passed(clip.closes) - passed(clip.again)
    if clip.closes > 1:  # covered from the beginning until then
        covered = covered + 1 - passed(clip.seen)
    return covered[:, None]
