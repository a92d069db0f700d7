"""Trains a mini model's transformer on latents of generated clips, with a noise level of its own for every chunk.

Encoding clips costs more than a training step may, so the data set starts small and grows while it is drawn from.
Short clips come first, long ones in the last part, when there is motion to continue.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.wan.config import WanConfig
from ..models.wan.load import load_wan
from ..models.wan.transformer import WanTransformer
from ..models.wan.vae import WanVAE
from .checkpoint import Stand, load, require_finite_loss, save, save_or_say
from .clip_pool import CHUNK_FRAMES, SHAPES, ClipPool, Clips
from .noise_levels import chunk_sigmas
from .optim import Muon
from .text import TEXT_DIM

CONFIG = WanConfig(dim=128, ffn_dim=512, num_layers=6, num_heads=4, text_dim=TEXT_DIM, freq_dim=256)
MUON_RATE, ADAM_RATE = 0.015, 2e-3


Loss = Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Phase:
    """Part of the training: `until` which share of it, clips of how many chunks, how many per step.

    The clips are beginnings of clips of `pool_chunks` chunks, of which there are up to `clips`.
    """

    until: float
    chunks: int
    batch: int
    pool_chunks: int
    clips: int


PHASES = (Phase(0.25, 2, 24, 4, 1536), Phase(0.7, 4, 12, 4, 3072), Phase(1.01, 8, 6, 8, 1024))


@dataclass(frozen=True)
class Recipe:
    """An architecture, what it is trained on, and how.

    loss: of (model, clean latents [B, 16, F, h, w], text [B, T, 64], generator). blocks: how the names of the matrices
    that Muon steps begin; ``apart``: parts of names that AdamW keeps all the same. first_clips: enough to start a phase
    with; then at least one more for every fourth step. half: products in bfloat16.
    """

    build: Callable[[], nn.Module]
    loss: Loss
    blocks: str
    apart: tuple[str, ...] = ()
    clips: Clips = SHAPES
    phases: tuple[Phase, ...] = PHASES
    first_clips: int = 256
    half: bool = False

    def for_muon(self, name: str, parameter: nn.Parameter) -> bool:
        return name.startswith(self.blocks) and parameter.ndim == 2 and not any(part in name for part in self.apart)

    def pool(self, phase: Phase, vae: WanVAE, seed: int, folder: Path) -> ClipPool:
        """The clips that a phase draws from."""
        return ClipPool(vae, phase.pool_chunks, seed * 1_000_003 + phase.pool_chunks, folder, self.clips)

    def clip_bytes(self, side: int) -> int:
        """What the clip files of a whole training take on disk: 16 numbers of two bytes for each latent pixel.

        side: of the latents, in pixels.
        """
        return sum(phase.clips * phase.pool_chunks * CHUNK_FRAMES * 16 * side * side * 2 for phase in self.phases)


@dataclass(frozen=True)
class Trained:
    """What a training changes: the weights, their running average, and the two optimizers' state.

    others: the parameters that AdamW steps.
    """

    model: nn.Module
    average: nn.Module
    muon: Muon
    adam: torch.optim.AdamW
    others: list[nn.Parameter]

    @classmethod
    def begin(cls, recipe: Recipe, device: torch.device) -> Trained:
        model = recipe.build().to(device)
        average = copy.deepcopy(model).eval().requires_grad_(False)
        matrices = [p for name, p in model.named_parameters() if recipe.for_muon(name, p)]
        chosen = {id(p) for p in matrices}
        others = [p for p in model.parameters() if id(p) not in chosen]
        adam = torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)
        return cls(model, average, Muon(matrices), adam, others)

    @property
    def parts(self) -> dict[str, Any]:
        """By their names in a checkpoint."""
        return {"model": self.model, "average": self.average, "muon": self.muon, "adam": self.adam}


def to_go_on_from(weights: Path) -> WanTransformer:
    """Another model's weights in 32 bits, as the beginning of a training."""
    return load_wan(weights, torch.float32).requires_grad_(True)


def require_resumable(checkpoint: Path, recipe: Recipe | None = None) -> None:
    """SettingError when a training of ``recipe`` cannot go on from ``checkpoint``."""
    with torch.random.fork_rng(devices=[]):
        load(checkpoint, Trained.begin(recipe or WAN, torch.device("cpu")).parts)


def encode_ahead(vae: WanVAE, recipe: Recipe, *, seed: int, folder: Path, say: Callable[[str], None]) -> None:
    """Writes the clip files that a training with this seed will want, in the order it will want them."""
    for phase in recipe.phases:
        pool = recipe.pool(phase, vae, seed, folder)
        while len(pool.latents) < phase.clips:
            pool.file()
            pool.skip()
        say(f"{phase.clips} clips of {phase.pool_chunks} chunks encoded")


def train_transformer(
    vae: WanVAE,
    *,
    minutes: float,
    steps: int | None = None,
    seed: int,
    device: torch.device,
    checkpoint: Path,
    resume: bool,
    say: Callable[[str], None],
    recipe: Recipe | None = None,
) -> tuple[nn.Module, dict[str, float]]:
    """Trains for `minutes` of wall-clock time, or `steps`; the schedules follow. Returns averaged weights.

    recipe: what to train, the Wan model unless said otherwise.
    """
    recipe = recipe or WAN
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    trained = Trained.begin(recipe, device)
    model, average, muon, adam, others = trained.model, trained.average, trained.muon, trained.adam, trained.others
    stand = Stand()
    if resume and checkpoint.is_file():
        stand = load(checkpoint, trained.parts)
        generator.manual_seed(seed + stand.step)
    step, loss_mean = stand.step, stand.loss
    pools: dict[int, ClipPool] = {}
    drawn: Counter[int] = Counter()
    folder = checkpoint.parent / "clips"
    clock = _Clock(stand.spent)
    while (progress := step / steps if steps else clock.seconds / (60 * minutes)) < 1:
        phase = _phase(recipe.phases, progress, step)
        if phase.pool_chunks not in pools:
            pools[phase.pool_chunks] = recipe.pool(phase, vae, seed, folder)
        pool = pools[phase.pool_chunks]
        drawn[phase.pool_chunks] += 1
        if drawn[phase.pool_chunks] % 50 == 1:
            pool.take_files(min(phase.clips, recipe.first_clips + drawn[phase.pool_chunks] // 4))
        clean, context = pool.draw(phase.batch, phase.chunks * CHUNK_FRAMES, generator)
        clean, context = clean.to(device), context.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.half):
            loss = recipe.loss(model, clean, context, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(others, 1.0)
        # Warm-up, a plateau, then down to nothing: the plateau leaves the length of the training open.
        rate = min(1.0, (step + 1) / 100, (1 - progress) / 0.45)
        for group in adam.param_groups:
            group["lr"] = ADAM_RATE * rate
        adam.step()
        muon.step(MUON_RATE * rate)
        model.zero_grad(set_to_none=True)
        step += 1
        _follow(average, model, min(0.9985, 1 - 9 / (step + 9)))
        require_finite_loss(loss.item(), f"transformer step {step}")
        loss_mean += (loss.item() - loss_mean) * max(0.01, 1 / step)
        if step % 50 == 0:
            clips = " and ".join(f"{len(p.clips)} clips of {chunks}" for chunks, p in pools.items())
            left = clock.seconds * (1 - progress) / max(progress, 1e-6)
            say(
                f"transformer step {step}  {clock.seconds:.0f} s, {left:.0f} s left  {clips} chunks  "
                f"loss {loss_mean:.4f}"
            )
        if clock.since_mark > 150:
            save_or_say(checkpoint, trained.parts, Stand(step, clock.seconds, loss_mean), say)
            clock.mark()
    save(checkpoint, trained.parts, Stand(step, clock.seconds, loss_mean))
    return average, {"steps": step, "loss": loss_mean}


def _phase(phases: tuple[Phase, ...], progress: float, step: int) -> Phase:
    """The phase due. In the last one every other step takes the one before it: there are more short clips than long."""
    index = next(i for i, phase in enumerate(phases) if progress < phase.until)
    return phases[max(0, index - 1)] if index == len(phases) - 1 and step % 2 else phases[index]


def _loss(model: nn.Module, clean: Tensor, context: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of the velocity over all frames that have noise."""
    batch, _, frames, _, _ = clean.shape
    chunks = frames // CHUNK_FRAMES
    sigma = chunk_sigmas(batch, chunks, generator).repeat_interleave(CHUNK_FRAMES, 1).to(clean.device)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    level = sigma[:, None, :, None, None]
    velocity = model(clean.lerp(noise, level), 1000 * sigma, context, chunk_frames=(CHUNK_FRAMES,) * chunks)
    counted = (level > 0).float()
    error = (velocity - (noise - clean)).square().mean((1, 3, 4), keepdim=True)
    return (error * counted).sum() / counted.sum()


WAN = Recipe(lambda: WanTransformer(CONFIG), _loss, "blocks.")


class _Clock:
    """Seconds of training, over interruptions too."""

    def __init__(self, spent: float) -> None:
        self._begin = time.monotonic() - spent
        self.mark()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    @property
    def since_mark(self) -> float:
        return time.monotonic() - self._mark

    def mark(self) -> None:
        self._mark = time.monotonic()


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
