"""The bundled mini model: a tiny text-to-video model of Wan 2.1's architecture, trained here on generated videos.

It exists so that every feature can be seen working within seconds and without a download: 64x64 pixels, one coloured
shape that moves and bounces, block-causal chunks of three latent frames. `load_mini()` is the entrance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..models.wan.load import load_wan
from ..models.wan.transformer import WanTransformer
from ..models.wan.vae import WanVAE, load_wan_vae
from .clip_pool import CHUNK_FRAMES
from .data import FRAME_SIZE
from .noise_levels import SHIFT
from .text import VOCABULARY, encode_prompt

WEIGHTS = Path(__file__).parent / "weights"
TRANSFORMER_FILE = WEIGHTS / "flowcache_mini_transformer.safetensors"
VAE_FILE = WEIGHTS / "flowcache_mini_vae.safetensors"
GUIDANCE = 2.0  # at 3 the shapes are exaggerated: triangles with hollow sides

__all__ = ["GUIDANCE", "TRANSFORMER_FILE", "VAE_FILE", "MiniModel", "encode_prompt", "load_mini", "metadata"]


@dataclass(frozen=True)
class MiniModel:
    """Everything a run needs. Sizes in pixels and latent frames; `provenance` says how each file came about."""

    transformer: WanTransformer
    vae: WanVAE
    encode_prompt: Callable[[str], Tensor]
    chunk_frames: int
    frame_size: int
    shift: float
    fps: int
    vocabulary: tuple[str, ...]
    provenance: Mapping[str, Mapping[str, str]]
    guidance: float = GUIDANCE

    def noise(self, chunks: int, seed: int, batch: int = 1) -> Tensor:
        """Standard normal latents [batch, 16, 3 * chunks, 8, 8], drawn on the CPU whatever device computes."""
        generator = torch.Generator().manual_seed(seed)
        side = self.frame_size // 8
        weight = self.transformer.patch_embedding.weight
        shape = (batch, weight.shape[1], chunks * self.chunk_frames, side, side)
        return torch.randn(shape, generator=generator).to(weight.device)


def load_mini(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> MiniModel:
    """The mini model with its weights on `device`, in `dtype` (the autoencoder too). Takes a fraction of a second.

    Raises:
        ValueError: a weight file is missing or damaged; the message names it.
    """
    return MiniModel(
        transformer=load_wan(TRANSFORMER_FILE, dtype).to(device),
        vae=load_wan_vae(VAE_FILE, device=device, dtype=dtype),
        encode_prompt=encode_prompt,
        chunk_frames=CHUNK_FRAMES,
        frame_size=FRAME_SIZE,
        shift=SHIFT,
        fps=16,
        vocabulary=VOCABULARY,
        provenance={path.stem: metadata(path) for path in (TRANSFORMER_FILE, VAE_FILE)},
    )


def metadata(path: Path) -> dict[str, str]:
    """How a weight file came about: training steps, seed, data, date, loss."""
    with safe_open(path, framework="pt") as file:
        return {key: value for key, value in (file.metadata() or {}).items() if key != "config"}
