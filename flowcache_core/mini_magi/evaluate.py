"""Command that samples the mini MAGI and counts how often it does what the prompt says."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from ..commands.arguments import Parser
from ..engine import generate
from ..mini.evaluate import add_arguments, asked, check, evaluated
from ..mini.measure import measure
from ..report.refusing import refusing
from . import STEPS, TEXT_SCALE, MiniMagi, load_mini_magi


def sample(
    mini: MiniMagi,
    prompts: list[str],
    *,
    chunks: int,
    steps: int,
    guidance: float,
    seed: int = 0,
    clean_pass: bool = True,
) -> Tensor:
    """Videos [N, 3, T, 64, 64] in -1..1 of the prompts, all in one batch; prompt i takes the noise of ``seed + i``."""
    noise = torch.cat([mini.noise(chunks, seed + i) for i in range(len(prompts))])
    settings = mini.settings(chunks, steps, clean_pass=clean_pass)
    latents = generate(mini.denoiser(prompts, guidance), settings, noise, observe=refusing())
    return torch.cat([mini.vae.decode(part) for part in latents.split(8)]).cpu()


def main(argv: list[str]) -> int:
    """Entry of the command; returns the exit code."""
    parser = Parser(prog="evaluate-mini-magi", description=__doc__)
    add_arguments(parser, STEPS, TEXT_SCALE)
    options = parser.parse_args(argv)
    check(options)
    evaluated(options, sampled, "flowcache_core.mini_magi.evaluate:seen")
    return 0


def seen(settings: dict[str, Any], first: int, last: int) -> list[dict[str, Any]]:
    """A task: what the clips of these numbers show."""
    return [measure(video).as_json() for video in sampled(argparse.Namespace(**settings), range(first, last))]


def sampled(options: argparse.Namespace, only: range | None) -> Tensor:
    """Videos of the clips asked for, or of those of some numbers."""
    numbers = range(options.samples) if only is None else only
    prompts = [clip.prompt for clip in asked(options)][numbers.start : numbers.stop]
    chosen = {"chunks": options.chunks, "steps": options.steps, "guidance": options.guidance}
    return sample(load_mini_magi(), prompts, seed=options.seed + numbers.start, **chosen)
