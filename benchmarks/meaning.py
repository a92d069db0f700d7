"""Whether benchmark videos still do what their prompts say: the rates of ``evaluate-mini``, per model.

PSNR says how close a video is to the one with every step computed; these rates say whether it shows what was asked for,
which another video may do as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from flowcache_core.calibrate.runs import Pair
from flowcache_core.mini.data import Clip
from flowcache_core.mini.measure import measure as measure_clip
from flowcache_core.mini_scenes.data import Scene
from flowcache_core.mini_scenes.evaluate import judged, scenes_asked

Rates = dict[str, tuple[float, int]]
"""Share of right answers and their number, by question."""

MOST = 32  # scenes that a part of the pairs is looked up in
SCENE_SEED = 1000  # of scenes_asked: neither trained nor calibrated on, nor those of docs/mini-scenes.md


@cache
def held_out_scenes(count: int) -> tuple[Scene, ...]:
    """Scenes whose prompts the benchmarks use, those with an event and those without by turns."""
    drawn = scenes_asked(16 * count, SCENE_SEED)
    eventful = [s for s in drawn if s.back or s.changes or any(a.enters or a.turns for a in s.actors)]
    plain = [s for s in drawn if s not in eventful]
    return tuple(scene for pair in zip(eventful, plain, strict=False) for scene in pair)[:count]


def of_scenes(batch: Sequence[Pair], videos: Sequence[Tensor]) -> Rates:
    scenes = {scene.prompt: scene for scene in held_out_scenes(max(MOST, len(batch)))}
    return judged([scenes[prompt] for prompt, _ in batch], torch.stack([as_clip(video) for video in videos]))


def of_mini(batch: Sequence[Pair], videos: Sequence[Tensor]) -> Rates:
    """Colour in most frames, direction, shape, and an area that stays within 30 %."""
    right: dict[str, list[bool]] = {"colour": [], "direction": [], "shape": [], "area": []}
    for (prompt, _), video in zip(batch, videos, strict=True):
        asked, seen = clip_of(prompt), measure_clip(as_clip(video))
        right["colour"].append(2 * seen.colours.count(asked.colour) > len(seen.colours))
        right["direction"].append(seen.direction == asked.direction)
        right["shape"].append(seen.shape == asked.shape)
        first, *later = [seen.areas[:9].mean(), *(part.mean() for part in seen.areas[9:].split(12))]
        right["area"].append(all(bool(0.7 * first <= part <= 1.3 * first) for part in later))
    return {name: (sum(answers) / len(answers), len(answers)) for name, answers in right.items()}


JUDGES: dict[str, Callable[[Sequence[Pair], Sequence[Tensor]], Rates]] = {
    "mini": of_mini,
    "mini-magi": of_mini,
    "scenes": of_scenes,
}


def merged_rates(parts: Sequence[Rates]) -> Rates:
    """Of all answers to the questions of several parts."""
    found: Rates = {}
    for name in dict.fromkeys(name for rates in parts for name in rates):
        answers = [rates[name] for rates in parts if name in rates]
        count = sum(number for _, number in answers)
        found[name] = (sum(share * number for share, number in answers) / max(1, count), count)
    return found


def right(rates: Rates) -> float | None:
    """Share of all answers that are right, a question with more answers counting more; None without answers."""
    asked = [(share, count) for name, (share, count) in rates.items() if name != "all" and count]
    total = sum(count for _, count in asked)
    return sum(share * count for share, count in asked) / total if total else None


def clip_of(prompt: str) -> Clip:
    """The mini model's prompts are sentences of one form."""
    _, colour, shape, _, direction = prompt.split()
    return Clip(colour, shape, direction, 0.0, 0.0, 0.0)


def as_clip(video: Tensor) -> Tensor:
    """``[T, H, W, 3]`` uint8 as ``[3, T, H, W]`` in -1..1."""
    return video.movedim(3, 0).float() / 127.5 - 1
