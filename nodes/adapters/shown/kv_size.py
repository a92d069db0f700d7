"""The K/V budget in words for the user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ....flowcache_core.kv.settings import KVSettings
from ....flowcache_core.models.magi.transformer import MagiTransformer


@dataclass(frozen=True)
class KVSize:
    """K/V of one layer and branch, and the video that the text on the node speaks of.

    width: of a token's keys. frames: latent frames of a chunk.
    """

    width: int
    layers: int
    pixels: tuple[int, int]
    frames: int

    @property
    def chunk_tokens(self) -> int:
        return self.frames * (self.pixels[0] // 16) * (self.pixels[1] // 16)

    @classmethod
    def of(cls, transformer: Any) -> KVSize | None:
        """At the size that Self-Forcing models, or MAGI-1, are made for; None for models we do not know."""
        if isinstance(transformer, MagiTransformer):
            config = transformer.config
            return cls(config.kv_heads * config.head_dim, config.num_layers, (720, 720), 6)
        dim, blocks = (getattr(transformer, name, None) for name in ("dim", "blocks"))
        return cls(dim, len(blocks), (832, 480), 3) if isinstance(dim, int) and blocks is not None else None


def describe_budget(model: Any, kv: KVSettings) -> str:
    """The budget in chunks and in MB at a common size, as far as the model is known."""
    budget, size = max(kv.budgets), KVSize.of(model.model.diffusion_model)
    text = f"{budget:g} chunks of finished video are kept, beside the active ones"
    if size is None:
        return text
    dtype: torch.dtype = kv.dtype or model.model.get_dtype_inference()
    chunk = 2 * size.chunk_tokens * size.width * size.layers * dtype.itemsize
    kept, whole = (
        f"{value:.0f} MB" if value >= 10 else f"{value:.2g} MB"
        for value in (chunk * budget / 1e6, chunk * (budget + 1) / 1e6)
    )
    width, height = size.pixels
    name = str(dtype).removeprefix("torch.")
    return (
        f"{text}: {kept}, {whole} with one active chunk ({width}x{height}, {size.frames} latent frames a chunk, {name},"
        " CFG 1)"
    )
