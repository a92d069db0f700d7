"""Videos of small scenes: up to three shapes before hills, a camera that pans, and events in chunks of their own.

Everything about a clip follows from its `Scene` (a few numbers), and a list of scenes from a seed, so data sets need no
files. A chunk is three latent frames: the first nine pixel frames of a video, then twelve each.

Moving shapes keep to the picture and bounce off its sides; resting ones stand in the world, so a panning camera leaves
them behind and finds them again when it pans back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ..mini.data import COLOURS, HALF_SIZES, SHAPES, outline_distance

T = TypeVar("T")

FRAME_SIZE = 128
SPEED = 2.0  # pixels per frame, of shapes and of the camera: one latent cell per latent frame
MIN_RADIUS, MAX_RADIUS = 11.0, 14.0
ROOM = 36.0  # pixels a moving shape can travel before it first meets a side
LANES: dict[str, float] = {"high": 26.0, "middle": 64.0, "low": 102.0}  # mean height of a shape's centre
JITTER = 4.0
MOTIONS: dict[str, int] = {"left": -1, "right": 1, "resting": 0}
PANS: dict[str, int] = {"left": -1, "right": 1, "still": 0}
ORDINALS = ("first", "second", "third", "fourth")  # the chunk in which an event begins
EVENT_CHUNKS = (1, 2, 3)
POST_WIDTH = 30.0

SKY: dict[str, tuple[float, float, float]] = {"night": (0.06, 0.06, 0.09), "day": (0.20, 0.25, 0.36)}
GROUND: dict[str, tuple[float, float, float]] = {"night": (0.15, 0.16, 0.19), "day": (0.33, 0.33, 0.30)}
POST = (0.42, 0.34, 0.28)
HORIZON = 72.0
WAVES = ((15.0, 149.0), (7.0, 61.0))  # amplitude and length in pixels of the hills' outline
SHADE = (0.20, 43.0)  # relative depth and length in pixels of the stripes on the hills


@dataclass(frozen=True)
class Actor:
    """One shape. `x`, `y`: its centre in the first frame (or in the frame in which it enters), in pixels.

    enters: chunk in which it comes in from the side; turns: its new colour and the chunk in which it takes it.
    """

    lane: str
    colour: str
    shape: str
    motion: str
    radius: float
    x: float
    y: float
    enters: int = 0
    turns: tuple[str, int] | None = None

    @property
    def half_size(self) -> tuple[float, float]:
        """Half width and half height of the bounding box in pixels."""
        width, height = HALF_SIZES[self.shape]
        return width * self.radius, height * self.radius

    @property
    def phrases(self) -> list[str]:
        """What a prompt says of it."""
        motion = "resting" if self.motion == "resting" else f"moving {self.motion}"
        when = f" enters {ORDINALS[self.enters]}" if self.enters else ""
        said = [f"a {self.lane} {self.colour} {self.shape} {motion}{when}"]
        if self.turns:
            said.append(f"{self.lane} {self.shape} turns {self.turns[0]} {ORDINALS[self.turns[1]]}")
        return said

    def colour_in(self, chunk: int) -> str:
        """Name of its colour in a chunk."""
        return self.turns[0] if self.turns and chunk >= self.turns[1] else self.colour


@dataclass(frozen=True)
class Scene:
    """One clip. pan: where the camera goes; back: chunk from which it pans the other way.

    light: day or night; changes: chunk in which the one becomes the other; phases of the hills' two waves and of their
    stripes in turns; post: x of a post before everything, in pixels of the first frame.
    """

    actors: tuple[Actor, ...]
    pan: str
    light: str
    phases: tuple[float, float, float]
    back: int | None = None
    changes: int | None = None
    post: float | None = None

    @property
    def prompt(self) -> str:
        """The phrases that describe the clip, between commas."""
        said = [phrase for actor in self.actors for phrase in actor.phrases]
        if self.post is not None:
            said.append("a post")
        camera = "camera still" if self.pan == "still" else f"camera panning {self.pan}"
        said.append(camera + (f" back {ORDINALS[self.back]}" if self.back else ""))
        said.append(f"by {self.light}")
        if self.changes:
            said.append(("night falls " if self.light == "day" else "day breaks ") + ORDINALS[self.changes])
        return ", ".join(said)

    def light_in(self, chunk: int) -> str:
        """The light of a chunk."""
        if self.changes and chunk >= self.changes:
            return "night" if self.light == "day" else "day"
        return self.light


def first_frame(chunk: int) -> int:
    """Pixel frame with which a chunk begins."""
    return 0 if chunk == 0 else 12 * chunk - 3


def chunk_of(frame: int) -> int:
    """Chunk that a pixel frame belongs to."""
    return (frame + 3) // 12


def random_scenes(count: int, seed: int) -> list[Scene]:
    """`count` scenes."""
    generator = torch.Generator().manual_seed(seed)
    return [_scene(_Dice(generator)) for _ in range(count)]


class _Dice:
    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def chance(self, share: float) -> bool:
        return self.uniform() < share

    def one_of(self, choices: Sequence[T]) -> T:
        return choices[int(torch.randint(len(choices), (), generator=self.generator))]

    def shuffled(self, choices: Iterable[T]) -> list[T]:
        listed = list(choices)
        return [listed[i] for i in torch.randperm(len(listed), generator=self.generator).tolist()]


def _scene(dice: _Dice) -> Scene:
    pan = dice.one_of(("left", "right", "left", "right", "still"))
    back = dice.one_of(EVENT_CHUNKS[1:]) if pan != "still" and dice.chance(0.4) else None
    count = dice.one_of((1, 2, 2, 2, 3))
    colours = dice.shuffled(COLOURS)
    lanes = sorted(dice.shuffled(LANES)[:count], key=lambda lane: LANES[lane])
    actors = [_actor(dice, lane, colour) for lane, colour in zip(lanes, colours)]
    event, chunk = dice.one_of(("turns", "enters", "none", "none")), dice.one_of(EVENT_CHUNKS)
    who = int(dice.uniform() * count)
    actor = actors[who]
    if back and dice.chance(0.5):  # something to come back to
        actors[who] = _left_behind(dice, actor, pan)
    elif event == "turns" and (actor.motion != "resting" or pan == "still"):
        actors[who] = replace(actor, turns=(colours[-1], chunk))
    elif event == "enters" and count > 1:
        motion = actor.motion if actor.motion != "resting" else dice.one_of(("left", "right"))
        half = actor.half_size[0]
        actors[who] = replace(actor, motion=motion, enters=chunk, x=-half if motion == "right" else FRAME_SIZE + half)
    return Scene(
        actors=tuple(actors),
        pan=pan,
        light=dice.one_of(("day", "night")),
        phases=(dice.uniform(), dice.uniform(), dice.uniform()),
        back=back,
        changes=dice.one_of(EVENT_CHUNKS) if dice.chance(0.25) else None,
        post=dice.uniform(0, FRAME_SIZE) if dice.chance(0.12) else None,
    )


def _left_behind(dice: _Dice, actor: Actor, pan: str) -> Actor:
    """The actor at rest on the side from which the camera pans away: it is out of the picture before long."""
    half = actor.half_size[0]
    away = half + dice.uniform(0, 26)
    return replace(actor, motion="resting", x=away if pan == "right" else FRAME_SIZE - away)


def _actor(dice: _Dice, lane: str, colour: str) -> Actor:
    shape, motion = dice.one_of(SHAPES), dice.one_of(("left", "right", "resting"))
    radius = dice.uniform(MIN_RADIUS, MAX_RADIUS)
    half = HALF_SIZES[shape][0] * radius
    step = MOTIONS[motion]
    low, high = half + ROOM * (step < 0), FRAME_SIZE - half - ROOM * (step > 0)
    y = LANES[lane] + dice.uniform(-JITTER, JITTER)
    return Actor(lane, colour, shape, motion, radius, dice.uniform(low, high), y)


def camera(scene: Scene, frames: int) -> Tensor:
    """Where the camera is in each frame [frames], in pixels to the right of where it began."""
    time = torch.arange(frames, dtype=torch.float32)
    turn = float(first_frame(scene.back)) if scene.back else math.inf
    travelled = torch.minimum(time, 2 * turn - time) if scene.back else time
    return PANS[scene.pan] * SPEED * travelled


def path(actor: Actor, scene: Scene, frames: int) -> Tensor:
    """x of the actor's centre in the picture in each frame [frames]; far outside before it enters."""
    if actor.motion == "resting":
        return actor.x - camera(scene, frames)
    half = actor.half_size[0]
    span = FRAME_SIZE - 2 * half
    since = torch.arange(frames, dtype=torch.float32) - first_frame(actor.enters)
    travelled = actor.x - half + MOTIONS[actor.motion] * SPEED * since
    if actor.enters:  # straight in from outside, and from the first touch of the other side on like the others
        way = SPEED * since - 2 * half  # < 0 on the way in
        inside = torch.where(way < 0, way, _reflected(way, span))
        x = half + inside if actor.motion == "right" else FRAME_SIZE - half - inside
        return torch.where(since < 0, torch.full_like(x, -4.0 * FRAME_SIZE), x)
    return half + _reflected(travelled, span)


def _reflected(way: Tensor, span: float) -> Tensor:
    phase = way.remainder(2 * span)
    return torch.minimum(phase, 2 * span - phase)


def render(scenes: Sequence[Scene], frames: int, start: int = 0) -> Tensor:
    """Video [N, 3, frames, 128, 128] in -1..1 from frame `start` on."""
    return torch.stack([_render(scene, start, start + frames) for scene in scenes])


def _render(scene: Scene, start: int, end: int) -> Tensor:
    pixel = torch.arange(FRAME_SIZE) + 0.5
    frames = end - start
    offset = camera(scene, end)[start:]
    column = pixel[None] + offset[:, None]  # world x of every column, [frames, 128]
    height = horizon(scene, column)
    stripes = 1 + SHADE[0] * torch.sin(2 * math.pi * (column / SHADE[1] + scene.phases[2]))
    lights = [scene.light_in(chunk_of(frame)) for frame in range(start, end)]
    sky = torch.tensor([SKY[light] for light in lights]).T[:, :, None, None]
    ground = torch.tensor([GROUND[light] for light in lights]).T[:, :, None, None] * stripes[None, :, None, :]
    cover = (pixel[None, :, None] - height[:, None, :] + 0.5).clamp(0, 1)
    picture = sky.lerp(ground, cover[None])
    for actor in scene.actors:
        at = path(actor, scene, end)[start:]
        dx = pixel[None, None, :] - at[:, None, None]
        dy = (pixel - actor.y)[None, :, None].expand(frames, -1, 1)
        distance = outline_distance(actor.shape, dx, dy, *map(torch.tensor, actor.half_size))
        names = [actor.colour_in(chunk_of(frame)) for frame in range(start, end)]
        colour = torch.tensor([COLOURS[name] for name in names]).T[:, :, None, None]
        picture = picture.lerp(colour, (0.5 - distance).clamp(0, 1)[None])
    if scene.post is not None:
        near = (column - scene.post).abs() - POST_WIDTH / 2
        picture = picture.lerp(torch.tensor(POST).reshape(3, 1, 1, 1), (0.5 - near).clamp(0, 1)[None, :, None, :])
    return picture * 2 - 1


def horizon(scene: Scene, column: Tensor) -> Tensor:
    """Height of the hills' outline at world columns, in pixels from the top."""
    waves = (a * torch.sin(2 * math.pi * (column / length + p)) for (a, length), p in zip(WAVES, scene.phases))
    return HORIZON + sum(waves, torch.zeros(()))
