"""A tiny MAGI-1 and what a run of it is made of."""

from __future__ import annotations

import torch
from torch import Tensor

from flowcache_core.engine import EngineSettings
from flowcache_core.models.magi.config import MagiConfig
from flowcache_core.models.magi.denoiser import MagiDenoiser
from flowcache_core.models.magi.transformer import MagiTransformer
from flowcache_core.plan import window
from flowcache_core.schedule import magi, magi_distill_times

TINY = MagiConfig(48, 40, 2, 6, 2, 8, 12, text_dim=20, text_len=60, freq_dim=16, bands=1)
FRAMES = 2  # latent frames of a chunk
STEPS = 8
CHUNKS = 6


def random_model() -> MagiTransformer:
    model = MagiTransformer(TINY)
    draw = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw)
    return model.eval().requires_grad_(False)


def captions(chunks: int = CHUNKS) -> dict[int, tuple[Tensor, Tensor]]:
    """Another caption for every chunk, as duration tokens make it."""
    draw = torch.Generator().manual_seed(5)
    found = {}
    for chunk in range(chunks):
        mask = torch.zeros(1, 60)
        mask[:, : 3 + chunk] = 1
        found[chunk] = (torch.randn(1, 60, 20, generator=draw), mask)
    return found


def noise(chunks: int = CHUNKS, batch: int = 1) -> Tensor:
    return torch.randn(batch, 16, FRAMES * chunks, 4, 4, generator=torch.Generator().manual_seed(7))


def distilled(model: MagiTransformer, steps: int = STEPS, **changes) -> MagiDenoiser:
    return MagiDenoiser(model, captions(), step_times=magi_distill_times(steps), **changes)


def engine(chunks: int = CHUNKS, prefix_frames: int = 0, steps: int = STEPS, **changes) -> EngineSettings:
    plan = window(FRAMES * chunks, FRAMES, steps, 4, prefix_frames)
    values = {"plan": plan, "schedule": magi(steps), "clean_pass": True, "clean_timestep": 0.9999}
    return EngineSettings(**(values | changes))
