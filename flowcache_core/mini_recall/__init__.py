"""The third bundled model: clips in which everything is covered for a while. It shows whether a run still remembers.

Mini scenes' architecture, language and autoencoder, and a transformer of its own, trained from that one's weights. Its
videos are 64 x 64 parts of scenes: a resting shape, a post that covers the whole picture for three chunks, and what
comes to light behind it. `load_mini_recall()` is the entrance, `evaluate-mini --recall` the test.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ..mini import MiniModel, metadata
from ..mini_scenes import VAE_FILE, load_mini_scenes
from ..models.wan.load import load_wan
from .data import FRAME_SIZE

WEIGHTS = Path(__file__).parent / "weights"
TRANSFORMER_FILE = WEIGHTS / "flowcache_mini_recall_transformer.safetensors"

__all__ = ["TRANSFORMER_FILE", "load_mini_recall"]


def load_mini_recall(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> MiniModel:
    """The recall model with its weights on `device`, in `dtype`. Takes a fraction of a second.

    Raises:
        ValueError: a weight file is missing or damaged; the message names it.
    """
    return replace(
        load_mini_scenes(device, dtype),
        transformer=load_wan(TRANSFORMER_FILE, dtype).to(device),
        frame_size=FRAME_SIZE,
        provenance={path.stem: metadata(path) for path in (TRANSFORMER_FILE, VAE_FILE)},
    )
