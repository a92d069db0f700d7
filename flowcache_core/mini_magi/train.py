"""Command that makes the mini MAGI's weights: its transformer, on latents of the mini model's autoencoder.

The schedules follow the clock (`--minutes`) or the number of steps (`--steps`). `train-mini --stage encode` with the
same seed makes the clips beforehand.
"""

from __future__ import annotations

import torch

from ..commands.arguments import Parser
from ..mini import VAE_FILE
from ..mini.train import add_arguments, checked, provenance, write
from ..mini.transformer_training import require_resumable, train_transformer
from ..models.wan.vae import load_wan_vae
from . import TRANSFORMER_FILE, WEIGHTS
from .training import RECIPE

MINUTES = 58.0


def main(argv: list[str]) -> int:
    """Entry of `python -m flowcache_core train-mini-magi`; returns the exit code."""
    parser = Parser(prog="train-mini-magi", description=__doc__)
    add_arguments(parser, WEIGHTS, f"(default: {MINUTES:g})")
    options = parser.parse_args(argv)
    shared = checked(options, [TRANSFORMER_FILE.name], RECIPE.clip_bytes(8))
    minutes, checkpoint = options.minutes or MINUTES, options.work / "mini_magi.pt"
    if options.resume:
        require_resumable(checkpoint, RECIPE)
    vae = load_wan_vae(VAE_FILE, device=shared["device"])
    transformer, figures = train_transformer(vae, minutes=minutes, checkpoint=checkpoint, recipe=RECIPE, **shared)
    title = "FlowCache mini MAGI: text-to-video transformer"
    facts = {"title": title, **provenance(options.seed, figures)}
    write(options.out / TRANSFORMER_FILE.name, transformer, torch.float16, facts)
    return 0
