"""Bytes of a run's K/V cache, known before anything is allocated."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..plan.base import Plan
from .head_shares import head_shares
from .layout import capacity_tokens, drops, largest_chunk_frames, max_active_frames
from .settings import KVSettings
from .spec import KVSpec
from .storage.tokens import LayerTokens, Place, Room, Scratch

READ_BYTES = 256 * 2**20
"""Of keys and values together that are unpacked at once; beyond it a layer is read a group of heads at a time."""


def room_of(spec: KVSpec, settings: KVSettings, plan: Plan, budget: float | None) -> Room:
    """How many tokens a layer with this budget must hold."""
    tokens = spec.tokens_per_frame
    capacity, compressor = capacity_tokens(plan, tokens, budget), settings.compressor
    return Room(
        capacity=capacity,
        active=max_active_frames(plan) * tokens,
        chunks=tuple(chunk.frames * tokens for chunk in plan.chunks),
        shrinks=drops(plan, tokens, budget, settings.at_finish),
        alike=compressor is None or compressor.by_place,
    )


def place_of(spec: KVSpec, settings: KVSettings) -> Place:
    """Where K/V is stored and where it is used."""
    own = torch.empty(0, device=spec.device).device  # "cuda" becomes "cuda:0", comparable to a tensor's
    stored = own if settings.device is None else torch.device(settings.device)
    return Place(settings.dtype or spec.dtype, stored, spec.dtype, own)


def made(spec: KVSpec, settings: KVSettings, plan: Plan, budget: float | None, scratch: Scratch) -> LayerTokens:
    """Tokens of one layer with this budget."""
    room, place = room_of(spec, settings, plan, budget), place_of(spec, settings)
    return settings.storage.tokens(spec, room, place, scratch)


def peak_bytes(spec: KVSpec, settings: KVSettings, plan: Plan) -> int:
    """The most bytes a cache of this run ever holds: stored K/V, token positions and sampled queries, all layers.

    Positions and queries exist only in layers whose buffer is shorter than the video. SettingError when per-layer
    budgets or the storage do not fit the model. What a packed layer is read into comes on top: :func:`read_bytes`.
    """
    settings = settings.settled(spec, plan)
    if settings.by_head:
        return sum(peak_bytes(one.spec(spec), one.settings, plan) for one in head_shares(spec, settings))
    budgets = settings.layer_budgets(spec.layers)
    known = {budget: layer_bytes(spec, settings, plan, budget) for budget in set(budgets)}
    return sum(known[budget] for budget in budgets)


def layer_bytes(spec: KVSpec, settings: KVSettings, plan: Plan, budget: float | None) -> int:
    """As :func:`peak_bytes`, of one layer with this budget."""
    streams, compressor, rows = spec.branches * spec.batch, settings.compressor, 0
    if compressor is not None:
        rows = compressor.query_rows(largest_chunk_frames(plan) * spec.tokens_per_frame, spec.tokens_per_frame)
    queries = rows * spec.heads * spec.head_dim * spec.dtype.itemsize
    merges = compressor is not None and compressor.merges
    position = spec.kv_heads * (torch.int32.itemsize + (torch.float32.itemsize if merges else 0))
    nowhere, anywhere = replace(spec, device="meta"), replace(settings, device=None)
    room = room_of(spec, settings, plan, budget)
    beside = streams * (room.capacity * position + queries) if room.shrinks else 0
    return made(nowhere, anywhere, plan, budget, Scratch()).bytes + beside


def heads_at_once(spec: KVSpec, streams: int, tokens: int) -> int:
    """K/V heads of ``tokens`` that may be unpacked at once, of so many branches and videos."""
    one = 2 * streams * tokens * spec.head_dim * spec.dtype.itemsize
    return max(1, min(spec.kv_heads, READ_BYTES // max(one, 1)))


def read_bytes(spec: KVSpec, settings: KVSettings, plan: Plan, all_heads: bool = False) -> int:
    """The most bytes that packed tokens are unpacked into, all branches at once; 0 for plain storage. all_heads: at
    once, as sparse attention reads them.
    """
    settings = settings.settled(spec, plan)
    if not settings.storage.packs:
        return 0
    if settings.by_head:  # one after the other, into the same buffer
        return max(read_bytes(one.spec(spec), one.settings, plan, all_heads) for one in head_shares(spec, settings))
    tokens = max(capacity_tokens(plan, spec.tokens_per_frame, one) for one in set(settings.layer_budgets(spec.layers)))
    streams = spec.branches * spec.batch
    heads = spec.kv_heads if all_heads else heads_at_once(spec, streams, tokens)
    return 2 * streams * heads * tokens * spec.head_dim * spec.dtype.itemsize


def ahead_bytes(spec: KVSpec, settings: KVSettings, plan: Plan) -> int:
    """The most bytes on the model's device that K/V stored elsewhere is copied into, a layer ahead of its use: two
    layers of all branches; 0 where it is stored beside the model, or packed."""
    settings = settings.settled(spec, plan)
    place = place_of(spec, settings)
    if not place.apart or settings.storage.packs:
        return 0
    if settings.by_head:
        return sum(ahead_bytes(one.spec(spec), one.settings, plan) for one in head_shares(spec, settings))
    tokens = max(capacity_tokens(plan, spec.tokens_per_frame, one) for one in set(settings.layer_budgets(spec.layers)))
    return 2 * 2 * spec.branches * spec.batch * spec.kv_heads * tokens * spec.head_dim * place.dtype.itemsize


def run_bytes(spec: KVSpec, settings: KVSettings, plan: Plan, all_heads: bool = False) -> int:
    """What a run needs for its K/V at most: what is held and what it is read into (see :func:`read_bytes`)."""
    return peak_bytes(spec, settings, plan) + read_bytes(spec, settings, plan, all_heads)
