"""Command that samples mini scenes and counts how often its videos do what their prompts say.

Beside the rates of the generated videos stand those of the true videos of the same scenes, and of these after the
autoencoder: what the measurement itself, and the autoencoder, get wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..commands.arguments import Parser
from ..files import write_json
from ..mini import MiniModel
from ..mini.evaluate import NOT_OF_A_VIDEO, add_arguments, check, contact_sheet, sample
from ..mini.run_options import add_run_arguments, one_by_one, run_changes
from ..sweep.task import Task
from ..sweep.workers import Workers, kept_for, swept, workers_of
from . import GUIDANCE, data, load_mini_scenes
from .data import Scene
from .judge import NAMES, Answers, answers, rates
from .measure import measure

AT_ONCE = 8
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


def judged(scenes: list[Scene], videos: Tensor) -> Rates:
    """The rates of some videos against their scenes' prompts."""
    found: list[Answers] = [answers(scene, measure(video)) for scene, video in zip(scenes, videos)]
    return rates(found)


@torch.no_grad()
def reconstructed(mini: MiniModel, videos: Tensor) -> Tensor:
    """The videos after the autoencoder."""
    return torch.cat([mini.vae.decode(mini.vae.encode(part)) for part in videos.split(2)])


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
    if options.json:
        write_json(options.json, result, "json")
    if options.picture and videos is not None:
        prompts = [scene.prompt for scene in scenes[: options.rows]]
        contact_sheet(videos[: options.rows], prompts, options.picture, columns=9, colours=256)
    return 0
