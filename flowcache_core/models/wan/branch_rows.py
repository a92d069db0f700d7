"""A step in part whose guidance branches compute different tokens: one forward a branch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...denoiser import ChunkInput, ChunkOutput
from ...kv.cache import KVCache
from ...rows import Rows
from ..common.attention import attend_heads
from ..common.cached_attention import CachedAttention
from .transformer import PreparedText

if TYPE_CHECKING:
    from .denoiser import WanDenoiser


def compute_by_branch(denoiser: WanDenoiser, item: ChunkInput, cache: KVCache, rows: Rows, keep: bool) -> ChunkOutput:
    """Velocity and, with ``keep``, residual hold at each branch's own tokens; branches without any are not run."""
    batch, velocities, residuals = item.latents.shape[0], list[Tensor](), list[Tensor | None]()
    for branch, own in enumerate(rows.each):
        if own is None:
            velocities.append(torch.zeros_like(item.latents))
            residuals.append(None)
            continue
        result = denoiser.transformer.forward_chunk(
            item.latents,
            denoiser.times(item)[:batch],
            of_branch(denoiser.text(item.prompt_chunk, batch), branch, batch),
            first_frame=denoiser.shots.first_frame(item.chunk),
            attention=CachedAttention(cache, item.chunk, range(branch, branch + 1), attend_heads, rows=own),
            fps=denoiser.fps,
            return_residual=keep,
            rope=denoiser.rope(item.latents, cache.plan.frames + denoiser.shots.added),
            rows=own,
        )
        velocity, residual = result if isinstance(result, tuple) else (result, None)
        velocities.append(velocity)
        residuals.append(residual)
    some = next((one for one in residuals if one is not None), None)
    whole = None if some is None else torch.cat([torch.zeros_like(some) if r is None else r for r in residuals])
    return ChunkOutput(torch.stack(velocities), whole, rows)


def of_branch(text: PreparedText, branch: int, batch: int) -> PreparedText:
    """The part of one branch, of text that is branch-major."""
    own = slice(branch * batch, branch * batch + batch)
    return PreparedText(tuple(key[own] for key in text.keys), tuple(value[own] for value in text.values))
