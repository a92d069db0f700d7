"""Command that asks whether a video remembers: what was covered for three chunks comes to light; is it the same?

Every video begins with true chunks up to the one before the post comes in. Neither colour nor shape is in the prompt:
both can come only from the history. Half of the clips show it in their first chunk, half in their second.
"""

from __future__ import annotations

import argparse
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..commands.arguments import Parser
from ..files import write_json
from ..mini import MiniModel
from ..mini.data import COLOURS, SHAPES
from ..mini.evaluate import NOT_OF_A_VIDEO, add_arguments, check, contact_sheet, sample
from ..mini.run_options import add_run_arguments, one_by_one, run_changes
from ..mini_scenes import GUIDANCE
from ..mini_scenes.data import first_frame
from ..mini_scenes.evaluate import Rates, table
from ..mini_scenes.measure import PRESENT, Seen, frames_of, nearest_fill, owners, seen_in
from ..mini_scenes.text import without
from ..sweep.task import Task
from ..sweep.workers import Workers, kept_for, swept, workers_of
from . import data, load_mini_recall
from .data import Clip

AT_ONCE = 8
SETTLED = 4  # frames at the end of a chunk in which no edge of the post is left
NEAR, AREA = 5.0, 0.25  # pixels, and share of the area: what counts as the same place and size
QUESTIONS = {
    "back": "a shape is there again",
    "colour": "... of the colour it had (not in the prompt)",
    "shape": "... of the shape it had (not in the prompt)",
    "place": "... in its place and of its size",
}
NAMES = {
    **QUESTIONS,
    "first": "all of it, shown in the first chunk",
    "later": "all of it, shown in the second chunk only",
}
Answers = dict[str, bool]


def clips_asked(count: int, seed: int) -> list[Clip]:
    """The clips that are asked for; none is in the training data. Those of one kind stand together."""
    return sorted(data.random_clips(count, 2**41 + seed), key=lambda clip: clip.closes)


def answers(clip: Clip, video: Tensor) -> Answers | None:
    """What a video [3, T, 64, 64] in -1..1 remembers, under the keys of `QUESTIONS`.

    None if it was never covered: something of the shape is seen in the chunks between.
    """
    names, owner = owners((video.float() + 1) / 2)
    if any(int((frame >= 0).sum()) > PRESENT for chunk in clip.absent for frame in owner[frames_of(chunk)]):
        return None
    then, now = (_middle(owner[frames_of(chunk)], names) for chunk in (clip.seen, clip.again))
    if then is None or now is None:
        return {**dict.fromkeys(QUESTIONS, False), "back": now is not None}
    moved = max(abs((now.left + now.right) - (then.left + then.right)) / 2, abs(now.y - then.y))
    return {
        "back": True,
        "colour": now.colour == then.colour,
        "shape": nearest_fill(now.fill) == nearest_fill(then.fill),
        "place": moved < NEAR and abs(now.area / then.area - 1) < AREA,
    }


def _middle(owner: Tensor, names: list[str]) -> Seen | None:
    """The shape in the last frames of a chunk, in the frame of middling size; None unless most show one."""
    found = [seen for frame in owner[-SETTLED:] if (seen := seen_in(frame, names, 0)) is not None]
    return sorted(found, key=lambda seen: seen.area)[len(found) // 2] if 2 * len(found) > SETTLED else None


def rates(clips: list[Clip], found: list[Answers | None]) -> Rates:
    """Share of right answers and their number, by question. Counted are the videos that covered it."""
    given = [(clip, one) for clip, one in zip(clips, found, strict=True) if one is not None]
    shares = {name: _share([one[name] for _, one in given]) for name in QUESTIONS}
    for name, first in (("first", True), ("later", False)):
        shares[name] = _share([all(one.values()) for clip, one in given if (clip.seen == 0) is first])
    return shares


def _share(given: list[bool]) -> tuple[float, int]:
    return round(sum(given) / max(1, len(given)), 4), len(given)


def judged(clips: list[Clip], videos: list[Tensor]) -> Rates:
    """The rates of some videos."""
    return rates(clips, [answers(clip, video) for clip, video in zip(clips, videos, strict=True)])


def generated(
    mini: MiniModel, clips: list[Clip], *, seed: int, steps: int, guidance: float, **changes: Any
) -> list[Tensor]:
    """A video of every clip, begun with its true chunks. changes: fields of the engine's settings, such as K/V."""
    at_once = 1 if one_by_one(changes.get("policy")) else AT_ONCE
    videos: list[Tensor] = []
    for closes, group in groupby(clips, key=lambda clip: clip.closes):
        listed = list(group)
        begun = data.render(listed, first_frame(closes))
        with torch.no_grad():
            prefix = torch.cat([mini.vae.encode(part) for part in begun.split(AT_ONCE)])
        prompts = [without(clip.prompt, (*COLOURS, *SHAPES)) for clip in listed]
        run: dict[str, Any] = {"chunks": listed[0].again + 1, "steps": steps, "guidance": guidance, "seed": seed}
        videos += sample(mini, prompts, prefix=prefix, at_once=at_once, **run, **changes)
    return videos


def recall_of(mini: MiniModel, samples: int, seed: int, steps: int, guidance: float, **changes: Any) -> Rates:
    """The test as benchmarks ask for it: the rates of ``samples`` clips under engine settings."""
    clips = clips_asked(samples, seed)
    return judged(clips, generated(mini, clips, seed=seed, steps=steps, guidance=guidance, **changes))


def true_videos(clips: list[Clip]) -> list[Tensor]:
    """The clips themselves."""
    return [data.render([clip], first_frame(clip.again + 1))[0] for clip in clips]


@torch.no_grad()
def reconstructed(mini: MiniModel, videos: list[Tensor]) -> list[Tensor]:
    """The videos after the autoencoder."""
    return [mini.vae.decode(mini.vae.encode(video[None]))[0] for video in videos]


def sampled(options: argparse.Namespace, clips: list[Clip]) -> list[Tensor]:
    """Videos of these clips as the options ask for them."""
    mini = load_mini_recall()
    run = {"seed": options.seed, "steps": options.steps, "guidance": options.guidance}
    return generated(mini, clips, **run, **run_changes(options, mini.shift))


def answered(settings: dict[str, Any], closes: int) -> list[Answers | None]:
    """A task: what the clips answer in which the post comes in with this chunk."""
    options = argparse.Namespace(**settings)
    clips = [clip for clip in clips_asked(options.samples, options.seed) if clip.closes == closes]
    return [answers(clip, video) for clip, video in zip(clips, sampled(options, clips), strict=True)]


def answered_by(workers: Workers, options: argparse.Namespace) -> list[Answers | None]:
    """What the clips answer, one task for each kind of them."""
    work = f"{__package__}.evaluate:answered"
    settings = {key: value for key, value in vars(options).items() if key not in NOT_OF_A_VIDEO}
    kinds = sorted({clip.closes for clip in clips_asked(options.samples, options.seed)})
    tasks = [Task(str(closes), work, {"settings": settings, "closes": closes}) for closes in kinds]
    found = {task.name: value for task, value in swept(tasks, workers, kept_for("recall", {"work": work, **settings}))}
    return [one for task in tasks for one in found[task.name]]


def main(argv: list[str]) -> int:
    """Entry of the command; returns the exit code."""
    parser = Parser(prog="evaluate-mini --recall", description=__doc__)
    parser.add_argument("--recall", action="store_true", help="this test instead of the mini model's rates")
    add_arguments(parser, steps=25, guidance=GUIDANCE, chunks=None)
    parser.add_argument("--quick", action="store_true", help="leave out the autoencoder's rates")
    add_run_arguments(parser, "scenes")
    parser.set_defaults(chunks=data.CHUNKS)
    options = parser.parse_args(argv)
    check(options)
    clips, workers, videos = clips_asked(options.samples, options.seed), workers_of(options), None
    if workers is None:
        videos = sampled(options, clips)
        columns = {"generated": judged(clips, videos)}
    else:
        columns = {"generated": rates(clips, answered_by(workers, options))}
    true = true_videos(clips)
    columns["true videos"] = judged(clips, true)
    if not options.quick:
        columns["autoencoder"] = judged(clips, reconstructed(load_mini_recall(), true))
    print(f"{options.samples} clips, {options.steps} steps, guidance {options.guidance:g}")
    print(table(NAMES, columns))
    if options.json:
        shared = {"samples": options.samples, "steps": options.steps, "guidance": options.guidance}
        write_json(options.json, {**shared, "rates": columns}, "json")
    if options.picture:
        shown = clips[:: max(1, -(-len(clips) // options.rows))][: options.rows]  # of both kinds
        made = dict(zip(clips, videos)) if videos is not None else dict(zip(shown, sampled(options, shown)))
        contact_sheet(
            _as_long([made[clip] for clip in shown]),
            [clip.prompt for clip in shown],
            options.picture,
            columns=15,
            colours=256,
        )
    return 0


def _as_long(videos: list[Tensor]) -> Tensor:
    """Videos of different lengths in one tensor, black where one has ended."""
    longest = max(video.shape[1] for video in videos)
    return torch.stack([functional.pad(v, (0, 0, 0, 0, 0, longest - v.shape[1]), value=-1.0) for v in videos])
