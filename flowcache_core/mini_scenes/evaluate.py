"""Command that samples mini scenes and counts how often its videos do what their prompts say.

Beside the rates of the generated videos stand those of the true videos of the same scenes, and of these after the
autoencoder: what the measurement itself, and the autoencoder, get wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..commands.arguments import Parser
from ..files import write_json
from ..mini import MiniModel
from ..mini.data import COLOURS, SHAPES
from ..mini.evaluate import NOT_OF_A_VIDEO, add_arguments, check, contact_sheet, sample
from ..mini.run_options import add_run_arguments, one_by_one, run_changes
from ..sweep.task import Task
from ..sweep.workers import Workers, kept_for, swept, workers_of
from . import GUIDANCE, data, load_mini_scenes
from .data import Scene
from .judge import NAMES, Answers, answers, rates, recalled
from .measure import measure
from .text import without

AT_ONCE = 8
RECALL_CHUNKS, RECALL_CHUNK = 7, 6  # length of the recall test, and the chunk in which the shape is looked for
ABSENT = (2, 3)  # chunks in which it must be out of the picture
RECALL_NAMES = {
    "back": "a shape is there again",
    "colour": "... of the colour it had (not in the prompt)",
    "shape": "... of the shape it had (not in the prompt)",
    "place": "... at its height and of its size",
}
Rates = dict[str, tuple[float, int]]


EVENTS: dict[str, Callable[[Scene], bool]] = {
    "turns": lambda scene: any(actor.turns for actor in scene.actors),
    "enters": lambda scene: any(actor.enters for actor in scene.actors),
    "back": lambda scene: scene.back is not None,
    "changes": lambda scene: scene.changes is not None,
}


def scenes_asked(count: int, seed: int, event: str | None = None) -> list[Scene]:
    """The scenes whose prompts are sampled; none is in the training data. event: only scenes with one of this kind."""
    if event is None:
        return data.random_scenes(count, 2**40 + seed)
    return [scene for scene in data.random_scenes(16 * count, 2**40 + seed) if EVENTS[event](scene)][:count]


def recall_scenes(count: int, seed: int) -> list[Scene]:
    """Scenes in which the camera pans away from a resting shape and comes back to it, chunks later."""
    found: list[Scene] = []
    for scene in data.random_scenes(16 * count, 2**41 + seed):
        if scene.pan == "still" or len(found) == count:
            continue
        actor = scene.actors[0]
        half = actor.half_size[0]
        away = half + 5 + (actor.x - half) % 10  # whole at first, and gone before the third chunk
        x = away if scene.pan == "right" else data.FRAME_SIZE - away
        resting = replace(actor, motion="resting", x=x, enters=0, turns=None)
        found.append(replace(scene, actors=(resting,), back=3, changes=None, post=None))
    return found


def recall_rates(scenes: list[Scene], videos: Tensor) -> Rates:
    """How often the shape is back, and the same. Counted are videos that lost it in between."""
    found: list[dict[str, bool]] = []
    for scene, video in zip(scenes, videos):
        track = measure(video).lanes[scene.actors[0].lane]
        if track.in_chunk(0) and not any(track.present(chunk) for chunk in ABSENT):
            found.append(recalled(track, RECALL_CHUNK))
    return {name: (sum(one[name] for one in found) / max(1, len(found)), len(found)) for name in RECALL_NAMES}


def judged(scenes: list[Scene], videos: Tensor) -> Rates:
    """The rates of some videos against their scenes' prompts."""
    found: list[Answers] = [answers(scene, measure(video)) for scene, video in zip(scenes, videos)]
    return rates(found)


@torch.no_grad()
def reconstructed(mini: MiniModel, videos: Tensor) -> Tensor:
    """The videos after the autoencoder."""
    return torch.cat([mini.vae.decode(mini.vae.encode(part)) for part in videos.split(2)])


def recall_of(mini: MiniModel, samples: int, seed: int, steps: int, guidance: float, **changes: Any) -> Rates:
    """The recall test: each video begins with a true first chunk, and the prompt leaves out what must be remembered.

    changes: fields of the engine's settings, such as a K/V budget.
    """
    scenes = recall_scenes(samples, seed)
    begun = data.render(scenes, data.first_frame(1))
    with torch.no_grad():
        prefix = torch.cat([mini.vae.encode(part) for part in begun.split(8)])
    run: dict[str, Any] = {"chunks": RECALL_CHUNKS, "steps": steps, "guidance": guidance}
    run |= {"prefix": prefix, "at_once": 1 if one_by_one(changes.get("policy")) else AT_ONCE, **changes}
    outcomes = {}
    for hidden, words in (("colour", COLOURS), ("shape", SHAPES)):
        prompts = [without(scene.prompt, words) for scene in scenes]
        outcomes[hidden] = recall_rates(scenes, sample(mini, prompts, seed=seed, **run))
    return {**outcomes["colour"], "shape": outcomes["shape"]["shape"]}


def recall(mini: MiniModel, options: argparse.Namespace, changes: dict[str, Any]) -> dict[str, Rates]:
    """The recall test as the command asks for it, with the true videos' rates beside it."""
    generated = recall_of(mini, options.samples, options.seed, options.steps, options.guidance, **changes)
    scenes = recall_scenes(options.samples, options.seed)
    videos = data.render(scenes, data.first_frame(RECALL_CHUNKS))
    columns = {"generated": generated, "true videos": recall_rates(scenes, videos)}
    if not options.quick:
        columns["autoencoder"] = recall_rates(scenes, reconstructed(mini, videos))
    return columns


def table(names: dict[str, str], columns: dict[str, Rates]) -> str:
    """Lines with a rate and the number of cases per column."""
    lines = [" " * 46 + "".join(f"{name:>18}" for name in columns)]
    for key, text in names.items():
        cells = (f"{share:7.1%} of {count:4}" if count else "-" for share, count in (c[key] for c in columns.values()))
        lines.append(f"{text:46}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def answered_by(workers: Workers, options: argparse.Namespace) -> list[Answers]:
    """What the clips answer, one task a clip."""
    work = "flowcache_core.mini_scenes.evaluate:answered"
    settings = {key: value for key, value in vars(options).items() if key not in NOT_OF_A_VIDEO}
    tasks = [Task(str(n), work, {"settings": settings, "number": n}) for n in range(options.samples)]
    found: dict[str, Answers] = {}
    for task, value in swept(tasks, workers, kept_for("scenes", {"work": work, **settings})):
        found[task.name] = value
        print(f"clip {task.name} ({len(found)} of {len(tasks)})", flush=True)
    return [found[task.name] for task in tasks]


def answered(settings: dict[str, Any], number: int) -> Answers:
    """A task: what the clip of this number answers."""
    options = argparse.Namespace(**settings)
    scene = scenes_asked(options.samples, options.seed, options.event)[number]
    (video,) = sampled(options, range(number, number + 1))
    return answers(scene, measure(video))


def sampled(options: argparse.Namespace, only: range) -> Tensor:
    """Videos of the clips of some numbers."""
    mini = load_mini_scenes()
    prompts = [scene.prompt for scene in scenes_asked(options.samples, options.seed, options.event)]
    run: dict[str, Any] = {"chunks": options.chunks, "steps": options.steps, "guidance": options.guidance}
    changes = run_changes(options, mini.shift)
    return sample(mini, prompts, seed=options.seed, at_once=1, only=only, **run, **changes)


def main(argv: list[str], load: Callable[[], MiniModel] = load_mini_scenes) -> int:
    """Entry of the command; returns the exit code."""
    parser = Parser(prog="evaluate-mini --scenes", description=__doc__)
    parser.add_argument("--scenes", action="store_true", help="this model instead of the mini model")
    add_arguments(parser, steps=50, guidance=GUIDANCE)
    parser.add_argument("--recall", action="store_true", help=f"the recall test too, {RECALL_CHUNKS} chunks")
    parser.add_argument("--event", choices=EVENTS, help="only scenes with such an event, to have enough of them")
    parser.add_argument("--quick", action="store_true", help="leave out the autoencoder's rates")
    add_run_arguments(parser, "scenes")
    options = parser.parse_args(argv)
    check(options)
    mini = load()
    changes = run_changes(options, mini.shift)
    scenes = scenes_asked(options.samples, options.seed, options.event)
    run: dict[str, Any] = {"chunks": options.chunks, "steps": options.steps, "guidance": options.guidance}
    at_once = 1 if one_by_one(changes.get("policy")) else AT_ONCE
    workers, videos = workers_of(options), None
    if workers is None:
        prompts = [scene.prompt for scene in scenes]
        videos = sample(mini, prompts, seed=options.seed, at_once=at_once, **run, **changes)
        generated = judged(scenes, videos)
    else:
        generated = rates(answered_by(workers, options))
        if options.picture:
            videos = sampled(options, range(min(options.rows, options.samples)))
    true = data.render(scenes, data.first_frame(options.chunks))
    columns = {"generated": generated, "true videos": judged(scenes, true)}
    if not options.quick:
        columns["autoencoder"] = judged(scenes, reconstructed(mini, true))
    print(f"{options.samples} clips of {options.chunks} chunks, {options.steps} steps, guidance {options.guidance:g}")
    print(table({**NAMES, "all": "all of the above in one video"}, columns))
    result: dict[str, Any] = {"samples": options.samples, **run, "rates": columns}
    if options.recall:
        result["recall"] = recall(mini, options, changes)
        print(f"\nrecall: out of the picture for {len(ABSENT)} chunks or more, then there again")
        print(table(RECALL_NAMES, result["recall"]))
    if options.json:
        write_json(options.json, result, "json")
    if options.picture and videos is not None:
        prompts = [scene.prompt for scene in scenes[: options.rows]]
        contact_sheet(videos[: options.rows], prompts, options.picture, columns=9, colours=256)
    return 0
