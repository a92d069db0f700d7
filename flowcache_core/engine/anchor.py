"""Low frequencies of the first chunk, put back into later ones before they are remembered."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import require_finite
from ..fields import require_types


@dataclass(frozen=True)
class LowFrequencies:
    """Draws a finished chunk's low spatial frequencies towards those of the video's first chunk.

    What errors of reuse add up to over a long video is mostly a slow drift of colour and light, which lies there. It is
    the third part of TRAC (arXiv 2610.02779), known here from a digest only, so the form is ours: of the mean over a
    chunk's frames, everything below ``cutoff`` of the highest frequency is moved by ``strength`` of the way. It also
    undoes what the prompt wants to change: nightfall, a camera that pans.
    """

    strength: float = 0.25
    cutoff: float = 0.25

    def __post_init__(self) -> None:
        require_types(self)
        require_finite("strength", self.strength, minimum=0.0, maximum=1.0)
        require_finite("cutoff", self.cutoff, minimum=0.0, maximum=1.0)

    def low(self, latents: Tensor) -> Tensor:
        """Low frequencies ``[B, C, 1, H, W]`` of the mean frame of ``[B, C, F, H, W]``."""
        mean = latents.float().mean(2, keepdim=True)
        height, width = mean.shape[-2:]
        spectrum = torch.fft.rfft2(mean)
        rows = torch.fft.fftfreq(height, device=mean.device).abs()
        columns = torch.fft.rfftfreq(width, device=mean.device)
        kept = (rows[:, None] <= self.cutoff / 2) & (columns[None] <= self.cutoff / 2)
        return torch.fft.irfft2(spectrum * kept, s=(height, width))

    def apply(self, latents: Tensor, first: Tensor) -> Tensor:
        """``latents [B, C, F, H, W]`` of a finished chunk; ``first``: :meth:`low` of the first one."""
        return latents + (self.strength * (first - self.low(latents))).to(latents.dtype)
