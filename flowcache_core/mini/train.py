"""Command that makes the mini model's weights: the autoencoder, then the transformer on its latents.

The schedules follow the clock (`--minutes` for each stage) or the number of steps (`--steps`). The committed weights
carry their own steps, seed and loss in their metadata. They come from one such training on two CPU cores that was
stopped and resumed with changed schedules, so a new one gives a model as good, not the same bits.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from .transformer_training import CONFIG, WAN, Recipe, encode_ahead, train_transformer
from .vae_training import SHAPES, VAERecipe, train_decoder, train_vae

KINDS = len(data.COLOURS) * len(data.SHAPES) * len(data.DIRECTIONS)
DATA = f"generated clips of one moving shape, {KINDS} combinations of colour, shape and direction"
STAGES = ("vae", "decoder", "encode", "transformer", "all")
WEIGHTS_ROOM, CHECKPOINT_ROOM = 20_000_000, 100_000_000  # bytes; checkpoints take 30 MB, twice that while replaced
STAGES_HELP = (
    "vae: the autoencoder; decoder: its decoder alone, on longer clips; transformer: on the latents of clips; "
    "encode: clips for a transformer training that runs beside this; all (default): vae, decoder, transformer"
)


@dataclass(frozen=True)
class Training:
    """A bundled model of Wan's architecture and how it is made.

    data: what it is trained on, for its metadata. vae_name: of the file of its autoencoder; vae: None where that is
    another model's, and `vae_name` its path. side: of its latents, in pixels. minutes: per stage, by default. work: how
    the names of its checkpoints begin.
    """

    title: str
    data: str
    weights: Path
    vae_name: str | Path
    transformer_name: str
    vae: VAERecipe | None
    transformer: Recipe
    side: int
    minutes: Mapping[str, float]
    work: str = ""

    @property
    def stages(self) -> tuple[str, ...]:
        """Those of a whole training."""
        return ("transformer",) if self.vae is None else ("vae", "decoder", "transformer")


def mini_training() -> Training:
    """The mini model's."""
    minutes = {"vae": 24, "decoder": 20, "transformer": 70}
    names = (WEIGHTS, VAE_FILE.name, TRANSFORMER_FILE.name)
    return Training("FlowCache mini model", DATA, *names, SHAPES, WAN, 8, minutes)


def main(argv: list[str], training: Training | None = None) -> int:
    """Entry of `python -m flowcache_core train-mini`; returns the exit code. training: the mini model's if None."""
    parser = Parser(prog="train-mini", description=__doc__)
    parser.add_argument("--stage", choices=STAGES, default="all", help=STAGES_HELP)
    parser.add_argument("--scenes", action="store_true", help="the mini scenes model, from the mini model's weights")
    parser.add_argument("--recall", action="store_true", help="the recall model, a transformer from the scenes model's")
    default = "vae 24, decoder 20, transformer 70; of the scenes 25, 15, 78; of the recall model 46"
    add_arguments(parser, None, f"per stage (default: {default})")
    options = parser.parse_args(argv)
    training = training or mini_training()
    options.out = options.out or training.weights
    stages = training.stages if options.stage == "all" else (options.stage,)
    fits = training.vae is not None or not {"vae", "decoder"} & {*stages}
    require(
        fits,
        "stage",
        options.stage,
        f"encode, transformer, all: the autoencoder is another model's, {training.vae_name}",
    )
    names = [training.transformer_name] if training.vae is None else [str(training.vae_name), training.transformer_name]
    shared = checked(options, names, training.transformer.clip_bytes(training.side))
    device, vae_file = shared["device"], options.out / training.vae_name
    if options.resume:
        require_resumable(options, stages, training)
    if "vae" not in stages:
        load_wan_vae(vae_file)  # what this stage builds on: refused before the clips are made
    if "vae" in stages and training.vae is not None:
        vae, figures = train_vae(
            minutes=options.minutes or training.minutes["vae"],
            checkpoint=options.work / f"{training.work}vae.pt",
            recipe=training.vae,
            **shared,
        )
        save_vae(vae, vae_file, options.seed, figures, training)
    if "decoder" in stages:
        _finish_decoder(vae_file, options, device, training)
    if "encode" in stages:
        vae, folder = load_wan_vae(vae_file, device=device), options.work / "clips"
        encode_ahead(vae, training.transformer, seed=options.seed, folder=folder, say=say)
    if "transformer" in stages:
        transformer, figures = train_transformer(
            load_wan_vae(vae_file, device=device),
            minutes=options.minutes or training.minutes["transformer"],
            checkpoint=options.work / f"{training.work}transformer.pt",
            recipe=training.transformer,
            **shared,
        )
        save_transformer(transformer, options.out / training.transformer_name, options.seed, figures, training)
    return 0


def add_arguments(parser: argparse.ArgumentParser, weights: Path | None, minutes: str) -> None:
    """What every training command takes. weights: where they go; minutes: whose time ``--minutes`` is, its default."""
    parser.add_argument("--minutes", type=float, help=f"time {minutes}")
    parser.add_argument("--steps", type=int, help="train for so many steps in all, however long they take")
    parser.add_argument("--out", type=Path, default=weights, help="folder for the weights (default: the bundled ones)")
    parser.add_argument("--work", type=Path, default=Path(".runs"), help="folder for the checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0)


def checked(options: argparse.Namespace, names: Sequence[str], clip_bytes: int) -> dict[str, Any]:
    """The parsed options that every training function takes. names: of the weight files; clip_bytes: of the clips.

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
    require_folder(options.work, "work", room=clip_bytes + CHECKPOINT_ROOM)
    chosen = {"steps": options.steps, "seed": options.seed, "resume": options.resume}
    return {**chosen, "device": torch.device(name), "say": say}


def require_resumable(options: argparse.Namespace, stages: Sequence[str], training: Training) -> None:
    """SettingError when a checkpoint of these stages cannot be gone on from, or there is none at all."""
    checks: dict[str, Callable[[Path], None]] = {
        "vae": lambda path: vae_training.require_resumable(path, training.vae),
        "transformer": lambda path: transformer_training.require_resumable(path, training.transformer),
    }
    places = {stage: options.work / f"{training.work}{stage}.pt" for stage in stages if stage in checks}
    accepted = "no --resume: this stage leaves no checkpoint"
    require(bool(places), "resume", f"stage {options.stage}", accepted)
    there = [stage for stage, path in places.items() if path.is_file()] or list(places)[:1]
    for stage in there:
        checks[stage](places[stage])


def _finish_decoder(vae_file: Path, options: argparse.Namespace, device: torch.device, training: Training) -> None:
    """Trains the decoder on long clips. Without it colours drift in frames later than the first stage has seen."""
    vae = load_wan_vae(vae_file, device=device)
    before = {key: value for key, value in metadata(vae_file).items() if key in ("steps", "loss")}
    recipe = training.transformer
    pool = recipe.pool(recipe.phases[0], vae, options.seed, options.work / "clips")
    pool.take_files(recipe.first_clips)

    def keep(step: int) -> None:
        save_vae(vae, vae_file, options.seed, {**before, "decoder_steps": step}, training)
        pool.take_files(0)

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return pool.draw_video(1, generator)

    limits: dict[str, Any] = {"minutes": options.minutes or training.minutes["decoder"], "steps": options.steps}
    limits |= {"seed": options.seed, "recipe": training.vae}
    figures = train_decoder(vae, draw, say=say, keep=keep, **limits)
    save_vae(vae, vae_file, options.seed, {**before, **figures}, training)


Figures = Mapping[str, float | str]


def save_vae(vae: nn.Module, path: Path, seed: int, figures: Figures, training: Training) -> None:
    """Writes fp32 weights: a host that sees an fp16 autoencoder may take it for another kind."""
    facts = {"title": f"{training.title}: video autoencoder", **provenance(seed, figures, training.data)}
    write(path, vae, torch.float32, facts)


def save_transformer(transformer: nn.Module, path: Path, seed: int, figures: Figures, training: Training) -> None:
    """Writes fp16 weights with the sizes that a host cannot infer in their metadata."""
    sizes = {"num_heads": CONFIG.num_heads, "text_dim": CONFIG.text_dim, "freq_dim": CONFIG.freq_dim}
    config = json.dumps({"transformer": {"causal_ar": True, **sizes}})
    title = f"{training.title}: text-to-video transformer"
    facts = {"config": config, "title": title, **provenance(seed, figures, training.data)}
    write(path, transformer, torch.float16, facts)


def provenance(seed: int, figures: Figures, data: str = DATA) -> dict[str, str]:
    """Metadata of a weight file: how it came about."""
    facts = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in figures.items()}
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return {**facts, "seed": str(seed), "data": data, "date": today, "license": "same as the project"}


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
