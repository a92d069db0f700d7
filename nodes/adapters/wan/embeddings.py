"""What reuse distances compare, from the host model's own modules."""

from __future__ import annotations

from typing import Any

import comfy.ldm.common_dit
import torch
from comfy.ldm.wan.model import sinusoidal_embedding_1d
from torch import Tensor


def patch_embedding(transformer: Any, latents: Tensor) -> Tensor:
    """Tokens ``[B, dim, f, h, w]`` of noisy latents ``[B, C, f, H, W]``, before any block."""
    padded = comfy.ldm.common_dit.pad_to_patch_size(latents, transformer.patch_size)
    return transformer.patch_embedding(padded.float())


def time_modulation(model: Any, timestep: float, device: Any) -> Tensor:
    """The time projection ``[1, 6 * dim]`` that modulates the blocks."""
    transformer = model.diffusion_model
    time = torch.full((1,), timestep, device=device)
    embedding = sinusoidal_embedding_1d(transformer.freq_dim, time).to(model.get_dtype_inference())
    return transformer.time_projection(transformer.time_embedding(embedding))
