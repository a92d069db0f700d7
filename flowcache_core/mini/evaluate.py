"""Command that samples the mini model and counts how often it does what the prompt says."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..commands.arguments import CHUNKS, SAMPLES, STEPS, Parser
from ..engine import EngineSettings, generate
from ..errors import require, require_count, require_finite
from ..files import require_file, whole_file, write_json
from ..models.wan.denoiser import WanDenoiser
from ..plan.blockwise import blockwise
from ..report.refusing import refusing
from ..report.video import pixels
from ..reuse.base import ReusePolicy
from ..schedule import shifted
from ..sweep.task import Task
from ..sweep.workers import add_worker_arguments, kept_for, swept, workers_of
from . import GUIDANCE, MiniModel, data, load_mini
from .measure import JOURNEY, Measured, measure
from .noise_levels import SHIFT
from .run_options import add_run_arguments, one_by_one, run_changes


@dataclass(frozen=True)
class Score:
    """Shares of 64 (or more) clips. `colour`: frames of the right colour; `area`: clips within 30 % in every chunk."""

    samples: int
    chunks: int
    steps: int
    guidance: float
    colour: float
    direction: float
    area: float
    shape: float
    alive: float  # frames with a shape in them


def sample(
    mini: MiniModel,
    prompts: list[str],
    *,
    chunks: int,
    steps: int,
    guidance: float,
    seed: int = 0,
    clean_pass: bool = True,
    prefix: Tensor | None = None,
    at_once: int | None = None,
    only: range | None = None,
    **changes: object,
) -> Tensor:
    """Videos [N, 3, T, H, W] in -1..1 of the prompts, chunk after chunk.

    prefix: clean latents [N, 16, F, h, w] the videos begin with. at_once: videos in one batch, all unless said
    otherwise. only: the videos of these prompts, as they are among all. changes: fields of the engine's settings other
    than those of a plain run.
    """
    text = torch.cat([mini.encode_prompt(prompt) for prompt in prompts])
    device = next(mini.transformer.parameters()).device
    held = 0 if prefix is None else prefix.shape[2]
    settings = EngineSettings(
        plan=blockwise(chunks * mini.chunk_frames, mini.chunk_frames, steps, held),
        schedule=shifted(steps, mini.shift),
        clean_pass=clean_pass,
        **changes,  # type: ignore[arg-type]
    )
    noise, null = mini.noise(chunks, seed, len(prompts)), mini.encode_prompt("")
    parts = []
    wanted = torch.arange(len(prompts)) if only is None else torch.tensor(only)
    for rows in wanted.split(at_once or len(prompts)):
        given = (text[rows].to(device), null.expand_as(text[rows]).to(device))
        denoiser = WanDenoiser(mini.transformer, {0: given}, guidance)
        begun = None if prefix is None else prefix[rows].to(device)
        parts.append(generate(denoiser, settings, noise[rows], prefix=begun, observe=refusing()))
    return torch.cat([mini.vae.decode(part) for part in torch.cat(parts).split(8)]).cpu()


def score(clips: list[data.Clip], videos: Tensor, *, steps: int, guidance: float) -> Score:
    """Compares what the videos show with what the clips' prompts say."""
    return score_of(clips, [measure(video) for video in videos], steps=steps, guidance=guidance)


def score_of(clips: list[data.Clip], found: list[Measured], *, steps: int, guidance: float) -> Score:
    """:func:`score` of videos that were measured already."""
    frames = len(found[0].areas)
    colour = [name == clip.colour for clip, m in zip(clips, found) for name in m.colours]
    return Score(
        samples=len(clips),
        chunks=1 + (frames - 1) // (4 * 3),
        steps=steps,
        guidance=guidance,
        colour=_share(colour),
        direction=_share([m.direction == clip.direction for clip, m in zip(clips, found)]),
        area=_share([_steady(m) for m in found]),
        shape=_share([m.shape == clip.shape for clip, m in zip(clips, found)]),
        alive=_share([area > 50 for m in found for area in m.areas.tolist()]),
    )


def _steady(found: Measured) -> bool:
    """Whether each later chunk's mean area lies within 30 % of the first chunk's."""
    parts = [found.areas[:9].mean(), *(part.mean() for part in found.areas[9:].split(12))]
    return all(0.7 * parts[0] <= part <= 1.3 * parts[0] for part in parts)


def _share(answers: list[bool]) -> float:
    return round(sum(answers) / max(1, len(answers)), 4)


def contact_sheet(videos: Tensor, prompts: list[str], path: Path, columns: int = 12, colours: int = 128) -> None:
    """Writes a picture with a row per prompt and evenly spaced frames. Needs Pillow."""
    from PIL import Image, ImageDraw

    margin, gap, side = 200, 4, 2 * data.FRAME_SIZE
    chosen = torch.linspace(0, videos.shape[2] - 1, columns).round().long()
    sheet = Image.new("RGB", (margin + columns * (side + gap), len(prompts) * (side + gap)), (24, 24, 28))
    draw = ImageDraw.Draw(sheet)
    for row, (video, prompt) in enumerate(zip(videos, prompts)):
        top = row * (side + gap)
        lines = prompt.replace(" moving", "\nmoving").replace(", ", "\n")
        draw.text((8, top + side // 2 - 8 * (1 + lines.count("\n"))), lines, fill=(230, 230, 230))
        shown = pixels(video[:, chosen]).permute(1, 2, 3, 0).numpy()
        for column, picture in enumerate(shown):
            frame = Image.fromarray(picture)
            if frame.width != side:
                frame = frame.resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(frame, (margin + column * (side + gap), top))
    with whole_file(path, "picture") as part:
        sheet.quantize(colours).save(part, format=picture_format(path), optimize=True)


def picture_format(path: Path) -> str:
    """Pillow's name for a picture of this extension that 128 colours fit into. SettingError for any other."""
    formats = {".png": "PNG", ".gif": "GIF", ".bmp": "BMP"}
    require(path.suffix.lower() in formats, "picture", str(path), f"a name that ends in {', '.join(formats)}")
    return formats[path.suffix.lower()]


def add_arguments(parser: argparse.ArgumentParser, steps: int, guidance: float, chunks: int | None = 4) -> None:
    """What the evaluation of every model takes. chunks: None where they are not a choice."""
    parser.add_argument("--samples", type=int, default=64)
    if chunks is not None:
        parser.add_argument("--chunks", type=int, default=chunks)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--guidance", type=float, default=guidance)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the score here too")
    parser.add_argument("--picture", type=Path, help="write a contact sheet of the first clips here")
    parser.add_argument("--rows", type=int, default=8, help="clips on the contact sheet")
    add_worker_arguments(parser)


def asked(options: argparse.Namespace) -> list[data.Clip]:
    """The clips whose prompts are sampled."""
    return data.random_clips(options.samples, seed=10_000 + options.seed)


def check(options: argparse.Namespace) -> None:
    """SettingError for options that would come to nothing, before any sampling."""
    for name, most in (("samples", SAMPLES), ("chunks", CHUNKS), ("steps", STEPS), ("rows", SAMPLES)):
        require_count(name, getattr(options, name), minimum=1, maximum=most)
    require_count("seed", options.seed, minimum=0, maximum=2**62)
    require_finite("guidance", options.guidance, minimum=0.0)
    if options.json:
        require_file(options.json, "json")
    if options.picture:
        require(importlib.util.find_spec("PIL") is not None, "picture", "no pillow", "pip install pillow")
        picture_format(options.picture)
        require_file(options.picture, "picture")


def evaluated(options: argparse.Namespace, sampled: Sampled, work: str) -> None:
    """Sample the clips of :func:`asked`, here or on workers, and report. work: the task that does so for some of
    them, see :func:`seen`."""
    workers = workers_of(options)
    if workers is None:
        videos = sampled(options, None)
        report(options, [measure(video) for video in videos], videos)
        return
    settings = {key: value for key, value in vars(options).items() if key not in NOT_OF_A_VIDEO}
    size = TOGETHER if not one_by_one(settings_policy(options)) else 1
    groups = [(first, min(first + size, options.samples)) for first in range(0, options.samples, size)]
    tasks = [Task(f"{a}-{b}", work, {"settings": settings, "first": a, "last": b}) for a, b in groups]
    kept = kept_for(work.split(":")[0].rpartition(".")[2], {"work": work, **settings})
    rows: dict[str, list[dict[str, Any]]] = {}
    for task, value in swept(tasks, workers, kept):
        rows[task.name] = value
        print(f"clips {task.name} ({len(rows)} of {len(tasks)})", flush=True)
    found = [Measured.of_json(row) for task in tasks for row in rows[task.name]]
    shown = sampled(options, range(min(options.rows, options.samples))) if options.picture else None
    report(options, found, shown)


Sampled = Callable[[argparse.Namespace, range | None], Tensor]
"""Videos of the clips of :func:`asked`, or of those of some numbers."""
TOGETHER = 8  # clips of one task
NOT_OF_A_VIDEO = ("json", "picture", "rows", "workers", "ray", "scenes", "recall", "quick")


def settings_policy(options: argparse.Namespace) -> ReusePolicy | None:
    """The reuse policy that the options ask for, where the command has one."""
    return run_changes(options, SHIFT).get("policy") if "preset" in options else None


def seen(settings: dict[str, Any], first: int, last: int) -> list[dict[str, Any]]:
    """A task: what the clips of these numbers show."""
    return [measure(video).as_json() for video in sampled(argparse.Namespace(**settings), range(first, last))]


def sampled(options: argparse.Namespace, only: range | None) -> Tensor:
    mini = load_mini()
    prompts = [clip.prompt for clip in asked(options)]
    chosen = {"chunks": options.chunks, "steps": options.steps, "seed": options.seed, "guidance": options.guidance}
    return sample(mini, prompts, only=only, **chosen, **run_changes(options, mini.shift))


def report(options: argparse.Namespace, found: list[Measured], videos: Tensor | None) -> None:
    """Print the score of what was seen in the clips of :func:`asked`, and write what the options ask for."""
    clips = asked(options)
    result = score_of(clips, found, steps=options.steps, guidance=options.guidance)
    print(f"{options.samples} clips of {options.chunks} chunks, {options.steps} steps, guidance {options.guidance:g}")
    print(f"right colour, share of frames            {result.colour:7.1%}")
    print(f"right direction in the first {JOURNEY} frames   {result.direction:7.1%}")
    print(f"area within 30 % in every chunk          {result.area:7.1%}")
    print(f"right shape                              {result.shape:7.1%}")
    print(f"frames with a shape                      {result.alive:7.1%}")
    print(json.dumps(asdict(result)))
    if options.json:
        write_json(options.json, asdict(result), "json")
    if options.picture and videos is not None:
        contact_sheet(videos[: options.rows], [clip.prompt for clip in clips[: options.rows]], options.picture)


def main(argv: list[str]) -> int:
    """Entry of the command; returns the exit code."""
    parser = Parser(prog="evaluate-mini", description=__doc__)
    parser.add_argument("--scenes", action="store_true", help="the scenes model instead (--scenes --help says more)")
    parser.add_argument("--recall", action="store_true", help="what a video remembers (--recall --help says more)")
    add_arguments(parser, steps=50, guidance=GUIDANCE)
    add_run_arguments(parser, "mini")
    options = parser.parse_args(argv)
    check(options)
    evaluated(options, sampled, "flowcache_core.mini.evaluate:seen")
    return 0


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
