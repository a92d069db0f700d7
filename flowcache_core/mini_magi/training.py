"""What the mini MAGI is trained on: the mini model's clips, noised as MAGI-1's window of chunks leaves them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..mini.clip_pool import CHUNK_FRAMES
from ..mini.noise_levels import shifted
from ..mini.text import TEXT_DIM, TOKENS, encode_prompt
from ..mini.transformer_training import Recipe
from ..models.magi.config import MagiConfig
from ..models.magi.guidance import CLEAN_TIME
from ..models.magi.transformer import MagiTransformer
from .forward import forward_clip

CONFIG = MagiConfig(
    dim=128,
    ffn_dim=512,
    num_layers=6,
    num_heads=4,
    kv_heads=2,
    head_dim=32,
    cond_dim=128,
    text_dim=TEXT_DIM,
    text_len=TOKENS,
    bands=5,
)
WINDOW_CHUNKS = 4
WINDOW, HISTORY, INDEPENDENT = 0.55, 0.25, 0.10  # shares of the batch; in the rest every chunk is alone


@dataclass(frozen=True)
class Levels:
    """Times ``t`` (0 is noise) and which chunks are ``clean``, ``[batch, chunks]``; which rows are ``alone``."""

    t: Tensor
    clean: Tensor
    alone: Tensor


def chunk_times(batch: int, chunks: int, generator: torch.Generator | None = None) -> Levels:
    """Times as MAGI-1's sampler leaves them; clean chunks are at 0.9999, and no loss is taken on them.

    55 % of the rows: a window in which every chunk is a fixed lag ahead of the next one (mostly a quarter of the steps,
    as with four chunks), at the times of :func:`..schedule.magi`; finished chunks are clean, or at times stay where
    their last step was (runs without the clean pass). 25 %: clean chunks, then one at any time. 10 %: independent
    times. The rest: each chunk alone, which is how guidance and the nearly-clean forward use the model.
    """

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    kind, index = random(batch, 1), torch.arange(chunks)[None]
    lag = torch.where(random(batch, 1) < 0.75, torch.tensor(1 / WINDOW_CHUNKS), 0.25 + 0.75 * random(batch, 1))
    progress = random(batch, 1) * (1 + lag * (chunks - 1)) - lag * index
    last_step = torch.where(random(batch, 1) < 0.2, 1 - 1 / (16 + 48 * random(batch, 1)), torch.tensor(1.0))
    u = torch.minimum(progress.clamp(0, 1), last_step)
    window = u.square() / (3 - 2 * u.square())
    one_level = (1 - shifted(random(batch, 1))).expand(-1, chunks)
    history = one_level.masked_fill(index < (random(batch, 1) * chunks).long(), 1.0)
    independent = 1 - shifted(random(batch, chunks))
    t = torch.where(kind < WINDOW, window, torch.where(kind < WINDOW + HISTORY, history, independent))
    clean = t >= 1
    alone = kind[:, 0] >= WINDOW + HISTORY + INDEPENDENT
    return Levels(t.clamp(max=CLEAN_TIME), clean, alone)


def loss(model: nn.Module, clean: Tensor, text: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of the velocity (clean minus noise) over all chunks that have noise.

    Clean chunks are encoded under the null caption, as the sampler does; so is every chunk of a clip whose text is
    empty, and of a tenth of the clips some others, whose neighbours have text.
    """
    assert isinstance(model, MagiTransformer)
    batch, chunks = clean.shape[0], clean.shape[2] // CHUNK_FRAMES
    levels = chunk_times(batch, chunks, generator)
    untold = (text == encode_prompt("").to(text)).flatten(1).all(1).cpu()
    mixed = (torch.rand(batch, 1, generator=generator) < 0.1) & (torch.rand(batch, chunks, generator=generator) < 0.5)
    null = (levels.clean | untold[:, None] | mixed).to(clean.device)
    # Without guidance a clean chunk is not told that its caption is the null one (models/magi/denoiser.py).
    dropped = null & ~(levels.clean & (torch.rand(batch, 1, generator=generator) < 0.3)).to(clean.device)
    noise = torch.randn(clean.shape, generator=generator).to(clean.device)
    per_frame = levels.t.repeat_interleave(CHUNK_FRAMES, 1).to(clean.device)[:, None, :, None, None]
    t, alone = levels.t.to(clean.device), levels.alone.to(clean.device)
    velocity = forward_clip(model, noise.lerp(clean, per_frame), t, text, null=null, dropped=dropped, alone=alone)
    counted = (~levels.clean).repeat_interleave(CHUNK_FRAMES, 1).to(clean.device)[:, None, :, None, None].float()
    error = (velocity - (clean - noise)).square().mean((1, 3, 4), keepdim=True)
    return (error * counted).sum() / counted.sum().clamp_min(1)


def build() -> MagiTransformer:
    """Untrained weights. The gates begin open and alike for all times, the velocity at zero."""
    model = MagiTransformer(CONFIG)
    for name, parameter in model.named_parameters():
        if name.endswith("ada_modulate_layer.proj.0.bias"):
            nn.init.ones_(parameter)
    nn.init.normal_(model.y_embedder.null_caption_embedding)
    nn.init.zeros_(model.final_linear.linear.weight)
    return model


RECIPE = Recipe(build, loss, "videodit_blocks.layers.", ("ada_modulate_layer",))
