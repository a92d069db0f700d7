"""The largest forward of a run, gone through alone: what it takes beside weights and K/V, in a tenth of a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from ..denoiser import ChunkInput, Denoiser
from ..engine.settings import EngineSettings
from ..kv.cache import KVCache
from ..kv.layout import capacity_tokens
from ..plan.base import Chunk, Plan, offset_ticks
from .fake import DEVICE, without_values
from .forwards import write_all
from .memory import Ledger
from .traffic import Traffic

Build = Callable[[str], tuple[nn.Module, Denoiser]]


def largest_forward(build: Build, settings: EngineSettings, shape: tuple[int, int, int, int]) -> int:
    """Bytes on the device while the fullest chunk of a run is computed.

    build: the model with few layers, since no layer leaves anything behind but its K/V. shape: of latents
    ``[B, C, h, w]`` without their frames.
    """
    traffic, ledger = Traffic(), Ledger()
    with without_values(traffic), ledger, traffic:
        _, denoiser = build(DEVICE)
        if settings.attention == "bidirectional":
            return _window(denoiser, settings, shape, ledger)
        return _chunk(denoiser, settings, shape, ledger)


def _chunk(denoiser: Denoiser, settings: EngineSettings, shape: tuple[int, int, int, int], ledger: Ledger) -> int:
    """The chunk with the most frames behind as much history as the cache ever holds."""
    frames = max(chunk.frames for chunk in settings.plan.chunks)
    latents = torch.empty(*shape[:2], frames, *shape[2:], device=DEVICE)
    tokens = denoiser.kv_spec(latents).tokens_per_frame
    budget = max(settings.kv.budgets, default=None)
    held = -(-capacity_tokens(settings.plan, tokens, budget) // tokens)
    history = max(0, held - frames)
    chunks = (Chunk(0, 0, history), Chunk(1, history, frames)) if history else (Chunk(0, 0, frames),)
    plan = Plan("probe", chunks, 1, offset_ticks(chunks, len(chunks) - 1, 1, 1), len(chunks) - 1)
    cache = KVCache(denoiser.kv_spec(latents), replace(settings.kv, budget=None, compressor=None), plan)
    for chunk in chunks[:-1]:
        cache.begin(chunk)
        write_all(cache, _item(chunk, settings, latents), chunk.frames * tokens)
        cache.commit(chunk)
    cache.begin(chunks[-1])
    item = _item(chunks[-1], settings, latents)
    keep = settings.quantity.needs_residual
    denoiser.compute(item, cache, keep_residual=keep)  # texts and rotations are made
    with ledger.measured() as rise:
        denoiser.compute(item, cache, keep_residual=keep)
    return rise[DEVICE]


def _window(denoiser: Denoiser, settings: EngineSettings, shape: tuple[int, int, int, int], ledger: Ledger) -> int:
    plan = settings.plan
    latents = torch.empty(*shape[:2], plan.frames, *shape[2:], device=DEVICE)
    items = [_item(chunk, settings, latents[:, :, chunk.first_frame : chunk.end_frame]) for chunk in plan.chunks]
    levels = [settings.schedule.timesteps[0]] * plan.frames
    denoiser.window(latents, levels, items)
    with ledger.measured() as rise:
        denoiser.window(latents, levels, items)
    return rise[DEVICE]


def _item(chunk: Chunk, settings: EngineSettings, latents: torch.Tensor) -> ChunkInput:
    return ChunkInput(chunk, 0, settings.schedule.sigmas[0], settings.schedule.timesteps[0], latents)
