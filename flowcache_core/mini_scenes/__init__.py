"""The second bundled model: small scenes at 128x128, of the mini model's architecture and trained from its weights.

Where the mini model shows one shape on a plain ground, its videos keep bringing something new: up to three shapes
before hills, a camera that pans and may pan back, shapes that enter or change their colour, nightfall, in a chunk that
the prompt names. `load_mini_scenes()` is the entrance.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ..mini import MiniModel, metadata
from ..mini.clip_pool import CHUNK_FRAMES
from ..mini.noise_levels import SHIFT
from ..models.wan.load import load_wan
from ..models.wan.vae import load_wan_vae
from .data import FRAME_SIZE
from .text import VOCABULARY, encode_prompt

WEIGHTS = Path(__file__).parent / "weights"
TRANSFORMER_FILE = WEIGHTS / "flowcache_mini_scenes_transformer.safetensors"
VAE_FILE = WEIGHTS / "flowcache_mini_scenes_vae.safetensors"
GUIDANCE = 2.0

__all__ = ["GUIDANCE", "TRANSFORMER_FILE", "VAE_FILE", "VOCABULARY", "encode_prompt", "load_mini_scenes"]


def load_mini_scenes(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> MiniModel:
    """The scenes model with its weights on `device`, in `dtype` (the autoencoder too). Takes a fraction of a second.

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
        guidance=GUIDANCE,
    )
