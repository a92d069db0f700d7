"""Bytes of a run's K/V cache, known before anything is allocated."""

from __future__ import annotations

import torch

from ..plan.base import Plan
from .layout import capacity_tokens, largest_chunk_frames
from .settings import KVSettings
from .spec import KVSpec


def peak_bytes(spec: KVSpec, settings: KVSettings, plan: Plan) -> int:
    """The most bytes a cache of this run ever holds: K/V buffers, token positions and sampled queries, all layers.

    Positions and queries exist only in layers whose buffer is shorter than the video. SettingError when per-layer
    budgets do not fit the model.
    """
    streams, compressor = spec.branches * spec.batch, settings.compressor
    rows = 0
    if compressor is not None:
        rows = compressor.query_rows(largest_chunk_frames(plan) * spec.tokens_per_frame, spec.tokens_per_frame)
    queries = rows * spec.heads * spec.head_dim * spec.dtype.itemsize
    token = 2 * spec.kv_heads * spec.head_dim * (settings.dtype or spec.dtype).itemsize
    position = spec.kv_heads * torch.int32.itemsize
    total = 0
    for budget in settings.layer_budgets(spec.layers):
        capacity = capacity_tokens(plan, spec.tokens_per_frame, budget)
        total += capacity * token
        if capacity < plan.frames * spec.tokens_per_frame:
            total += capacity * position + queries
    return total * streams
