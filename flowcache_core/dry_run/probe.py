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
        return _chunks(denoiser, settings, shape, ledger)


def _chunks(denoiser: Denoiser, settings: EngineSettings, shape: tuple[int, int, int, int], ledger: Ledger) -> int:
    """The chunk with the most frames behind as much history as the cache ever holds; with joint attention as many of
    them as are ever active.
    """
    joint = settings.attention == "joint"
    frames = max(chunk.frames for chunk in settings.plan.chunks)
    latents = torch.empty(*shape[:2], frames, *shape[2:], device=DEVICE)
    spec = denoiser.kv_spec(latents)
    kv, tokens = settings.kv.settled(spec, settings.plan), spec.tokens_per_frame
    budget = max(kv.budgets, default=None)
    held = -(-capacity_tokens(settings.plan, tokens, budget) // tokens)
    at_work = settings.plan.max_active if joint else 1
    history = max(0, held - at_work * frames)
    lengths = ([history] if history else []) + [frames] * at_work
    chunks = tuple(Chunk(i, sum(lengths[:i]), length) for i, length in enumerate(lengths))
    given = len(chunks) - at_work
    plan = Plan("probe", chunks, 1, offset_ticks(chunks, given, 1, 0), given)
    cache = KVCache(spec, replace(kv, budget=None, compressor=None), plan)
    for chunk in chunks[:given]:
        cache.begin(chunk)
        write_all(cache, _item(chunk, settings, latents), chunk.frames * tokens)
        cache.commit(chunk)
    items = [_item(chunk, settings, latents) for chunk in chunks[given:]]
    for item in items:
        cache.begin(item.chunk)
    keep = settings.quantity.needs_residual

    def forward() -> object:
        return denoiser.joint(items, cache) if joint else denoiser.compute(items[0], cache, keep_residual=keep)

    forward()  # texts and rotations are made
    with ledger.measured() as rise:
        forward()
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
