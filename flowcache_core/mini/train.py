"""Command that makes the mini model's weights: the autoencoder, then the transformer on its latents.

The schedules follow the clock (`--minutes` for each stage) or the number of steps (`--steps`). The committed weights
carry their own steps, seed and loss in their metadata. They come from one such training on two CPU cores that was
stopped and resumed with changed schedules, so a new one gives a model as good, not the same bits.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as serialized
from torch import Tensor, nn

from ..commands.arguments import Parser
from ..errors import require, require_count, require_finite
from ..files import require_folder, whole_file
from ..models.wan.vae import load_wan_vae
from . import TRANSFORMER_FILE, VAE_FILE, WEIGHTS, data, metadata, transformer_training, vae_training
from .transformer_training import CONFIG, WAN, clip_bytes, encode_ahead, train_transformer
from .vae_training import train_decoder, train_vae

KINDS = len(data.COLOURS) * len(data.SHAPES) * len(data.DIRECTIONS)
DATA = f"generated clips of one moving shape, {KINDS} combinations of colour, shape and direction"
STAGES = ("vae", "decoder", "encode", "transformer", "all")
WEIGHTS_ROOM, CHECKPOINT_ROOM = 20_000_000, 100_000_000  # bytes; checkpoints take 30 MB, twice that while replaced
STAGES_HELP = (
    "vae: the autoencoder; decoder: its decoder alone, on longer clips; transformer: on the latents of clips; "
    "encode: clips for a transformer training that runs beside this; all (default): vae, decoder, transformer"
)


def main(argv: list[str]) -> int:
    """Entry of `python -m flowcache_core train-mini`; returns the exit code."""
    parser = Parser(prog="train-mini", description=__doc__)
    parser.add_argument("--stage", choices=STAGES, default="all", help=STAGES_HELP)
    add_arguments(parser, WEIGHTS, "per stage (default: vae 24, decoder 20, transformer 70)")
    options = parser.parse_args(argv)
    stages = ("vae", "decoder", "transformer") if options.stage == "all" else (options.stage,)
    shared = checked(options, [VAE_FILE.name, TRANSFORMER_FILE.name])
    device, vae_file = shared["device"], options.out / VAE_FILE.name
    if options.resume:
        require_resumable(options, stages)
    if "vae" not in stages:
        load_wan_vae(vae_file)  # what this stage builds on: refused before the clips are made
    if "vae" in stages:
        vae, figures = train_vae(minutes=options.minutes or 24, checkpoint=options.work / "vae.pt", **shared)
        save_vae(vae, vae_file, options.seed, figures)
    if "decoder" in stages:
        _finish_decoder(vae_file, options, device)
    if "encode" in stages:
        folder = options.work / "clips"
        encode_ahead(load_wan_vae(vae_file, device=device), WAN, seed=options.seed, folder=folder, say=say)
    if "transformer" in stages:
        transformer, figures = train_transformer(
            load_wan_vae(vae_file, device=device),
            minutes=options.minutes or 70,
            checkpoint=options.work / "transformer.pt",
            **shared,
        )
        save_transformer(transformer, options.out / TRANSFORMER_FILE.name, options.seed, figures)
    return 0


def add_arguments(parser: argparse.ArgumentParser, weights: Path, minutes: str) -> None:
    """What every training command takes. minutes: whose time ``--minutes`` is, and its default."""
    parser.add_argument("--minutes", type=float, help=f"time {minutes}")
    parser.add_argument("--steps", type=int, help="train for so many steps in all, however long they take")
    parser.add_argument("--out", type=Path, default=weights, help="folder for the weights (default: the bundled ones)")
    parser.add_argument("--work", type=Path, default=Path(".runs"), help="folder for the checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0)


def checked(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The parsed options that every training function takes. names: of the weight files.

    SettingError for what would come to nothing: before any training.
    """
    if options.steps is not None:
        require_count("steps", options.steps, minimum=1)
    if options.minutes is not None:
        require_finite("minutes", options.minutes, minimum=0.01)
    require_count("seed", options.seed, minimum=0, maximum=2**63 - 1)
    require(options.device != "cuda" or torch.cuda.is_available(), "device", "cuda", "cpu: no CUDA device is here")
    name = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    require_folder(options.out, "out", names, room=WEIGHTS_ROOM)
    require_folder(options.work, "work", room=clip_bytes() + CHECKPOINT_ROOM)
    chosen = {"steps": options.steps, "seed": options.seed, "resume": options.resume}
    return {**chosen, "device": torch.device(name), "say": say}


def require_resumable(options: argparse.Namespace, stages: Sequence[str]) -> None:
    """SettingError when a checkpoint of these stages cannot be gone on from, or there is none at all."""
    checks = {"vae": vae_training.require_resumable, "transformer": transformer_training.require_resumable}
    places = {stage: options.work / f"{stage}.pt" for stage in stages if stage in checks}
    accepted = "no --resume: this stage leaves no checkpoint"
    require(bool(places), "resume", f"stage {options.stage}", accepted)
    there = [stage for stage, path in places.items() if path.is_file()] or list(places)[:1]
    for stage in there:
        checks[stage](places[stage])


def _finish_decoder(vae_file: Path, options: argparse.Namespace, device: torch.device) -> None:
    """Trains the decoder on long clips. Without it colours drift in frames later than the first stage has seen."""
    vae = load_wan_vae(vae_file, device=device)
    before = {key: value for key, value in metadata(vae_file).items() if key in ("steps", "loss")}
    pool = WAN.pool(WAN.phases[0], vae, options.seed, options.work / "clips")
    pool.take_files(WAN.first_clips)

    def keep(step: int) -> None:
        save_vae(vae, vae_file, options.seed, {**before, "decoder_steps": step})
        pool.take_files(0)

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return pool.draw_video(1, generator)

    limits: dict[str, Any] = {"minutes": options.minutes or 20, "steps": options.steps}
    figures = train_decoder(vae, draw, seed=options.seed, say=say, keep=keep, **limits)
    save_vae(vae, vae_file, options.seed, {**before, **figures})


def save_vae(vae: nn.Module, path: Path, seed: int, figures: Mapping[str, float | str]) -> None:
    """Writes fp32 weights: a host that sees an fp16 autoencoder may take it for another kind."""
    title = "FlowCache mini model: video autoencoder"
    write(path, vae, torch.float32, {"title": title, **provenance(seed, figures)})


def save_transformer(transformer: nn.Module, path: Path, seed: int, figures: Mapping[str, float | str]) -> None:
    """Writes fp16 weights with the sizes that a host cannot infer in their metadata."""
    sizes = {"num_heads": CONFIG.num_heads, "text_dim": CONFIG.text_dim, "freq_dim": CONFIG.freq_dim}
    config = json.dumps({"transformer": {"causal_ar": True, **sizes}})
    title = "FlowCache mini model: text-to-video transformer"
    write(path, transformer, torch.float16, {"config": config, "title": title, **provenance(seed, figures)})


def provenance(seed: int, figures: Mapping[str, float | str]) -> dict[str, str]:
    """Metadata of a weight file: how it came about."""
    facts = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in figures.items()}
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return {**facts, "seed": str(seed), "data": DATA, "date": today, "license": "same as the project"}


def write(path: Path, model: nn.Module, dtype: torch.dtype, metadata: dict[str, str]) -> None:
    """Writes the model's weights with this metadata."""
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in model.state_dict().items()}
    content = serialized(tensors, metadata)
    with whole_file(path) as part:  # never written in place: whoever has the old file open keeps reading it
        part.write_bytes(content)
    say(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)")


def say(line: str) -> None:
    """Prints at once, for whoever follows a log file."""
    print(line, flush=True)


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
