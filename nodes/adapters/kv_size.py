"""The K/V budget in words for the user."""

from __future__ import annotations

from typing import Any

import torch

from ...flowcache_core.kv.settings import KVSettings

EXAMPLE = (832, 480, 3)
"""Width, height and latent frames of a chunk in the node's text: what Self-Forcing models are made for."""


def describe_budget(model: Any, kv: KVSettings) -> str:
    """The budget in chunks and in MB at a common size, as far as the model is known."""
    dim, blocks = (getattr(model.model.diffusion_model, name, None) for name in ("dim", "blocks"))
    budget = max(kv.budgets)
    text = f"{budget:g} chunks of finished video are kept, beside the active ones"
    if not isinstance(dim, int) or blocks is None:
        return text
    width, height, frames = EXAMPLE
    tokens = frames * (width // 16) * (height // 16)
    dtype: torch.dtype = kv.dtype or model.model.get_dtype_inference()
    megabytes = (2 * tokens * dim * len(blocks) * dtype.itemsize * part / 1e6 for part in (budget, budget + 1))
    kept, whole = (f"{value:.0f} MB" if value >= 10 else f"{value:.2g} MB" for value in megabytes)
    name = str(dtype).removeprefix("torch.")
    return (
        f"{text}: {kept}, {whole} with one active chunk ({width}x{height}, {frames} latent frames a chunk, {name},"
        " CFG 1)"
    )
