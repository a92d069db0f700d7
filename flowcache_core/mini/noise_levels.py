"""Which noise each chunk of a training clip gets: diffusion forcing, with the patterns that the samplers will use."""

from __future__ import annotations

import torch
from torch import Tensor

SHIFT = 3.0
CLEAN_HISTORY, STAGGERED = 0.45, 0.35  # shares of the batch; the rest has independent levels


def shifted(u: Tensor, shift: float = SHIFT) -> Tensor:
    """Sigma of a uniform number: more weight on high noise, where the content of a video is decided."""
    return shift * u / (1 + (shift - 1) * u)


def chunk_sigmas(batch: int, chunks: int, generator: torch.Generator | None = None) -> Tensor:
    """Sigmas [batch, chunks] in 0..1. A zero marks clean history, on which no loss is taken.

    45 % of the rows: a clean history of random length, then noise at one level. 35 %: a staggered ramp in which every
    chunk is noisier than the one before it. The rest: independent levels.
    """

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    kind = random(batch, 1)
    index = torch.arange(chunks)[None]
    one_level = shifted(random(batch, 1)).expand(-1, chunks)
    history = index < (random(batch, 1) * chunks).long()
    blockwise = one_level.masked_fill(history, 0)
    # A ramp of slope 1 / lag chunks that passes any point of the clip: finished chunks are clean, those to come noise.
    slope = 1 / (1 + random(batch, 1) * 3)
    front = random(batch, 1) * (chunks + 1 / slope) - 1 / slope
    ramp = shifted(((index - front) * slope).clamp(0, 1))
    independent = shifted(random(batch, chunks))
    return torch.where(
        kind < CLEAN_HISTORY, blockwise, torch.where(kind < CLEAN_HISTORY + STAGGERED, ramp, independent)
    )
