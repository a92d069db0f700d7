"""Runs of the bundled mini MAGI: the sliding window, one forward per step as the distilled model has it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from flowcache_core.cost import MagiShape
from flowcache_core.engine import generate
from flowcache_core.mini_magi import MiniMagi, load_mini_magi
from flowcache_core.models.magi.config import MagiConfig
from flowcache_core.report.record import Recorder, RunRecord
from flowcache_core.report.refusing import refusing

from .mini_runs import Pair, Setup


@cache
def mini() -> MiniMagi:
    return load_mini_magi()


def shape(config: MagiConfig, text_tokens: int) -> MagiShape:
    kv_dim = config.kv_heads * config.head_dim
    return MagiShape(config.dim, config.ffn_dim, config.num_layers, kv_dim, text_tokens)


def setup(chunks: int, steps: int) -> Setup:
    return Setup("window", chunks=chunks, steps=steps, guidance=1.0)


def run(setup: Setup, batch: Sequence[Pair], **changes: object) -> tuple[RunRecord, Tensor]:
    """One engine run over a batch of pairs. Returns its record and the latents ``[len(batch), 16, F, 8, 8]``."""
    model = mini()
    settings = model.settings(setup.chunks, setup.steps, solver=setup.solver, **changes)
    noise = torch.cat([model.noise(setup.chunks, seed) for _, seed in batch])
    denoiser = model.denoiser([prompt for prompt, _ in batch], setup.guidance)
    recorder = Recorder.of(settings, shape(model.transformer.config, model.transformer.config.text_len).event)
    latents = generate(denoiser, settings, noise, observe=refusing(recorder))
    return recorder.record(), latents
