"""A tiny MAGI-1 transformer with random weights, and something to ask it."""

from __future__ import annotations

import torch
from torch import Tensor

from flowcache_core.models.common.cached_attention import attending_alone
from flowcache_core.models.magi.config import MagiConfig
from flowcache_core.models.magi.layers import attend_grouped
from flowcache_core.models.magi.transformer import MagiTransformer

TINY = MagiConfig(48, 40, 3, 6, 2, 8, 12, text_dim=20, text_len=10, freq_dim=16, bands=1)
ALONE = attending_alone(attend_grouped)


def assert_close(ours: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= tolerance


def tiny(config: MagiConfig = TINY, **options) -> MagiTransformer:
    model = MagiTransformer(config, **options)
    draw = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = (0.3 * torch.randn(parameter.shape, generator=draw)).to(parameter.dtype)
    return model.eval().requires_grad_(False)


def tiny_inputs(batch: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    x, caption = torch.randn(batch, 16, 2, 4, 6, generator=draw), torch.randn(batch, 10, 20, generator=draw)
    mask = torch.zeros(batch, 10)
    for item in range(batch):
        mask[item, : 3 + item] = 1
    return x, torch.linspace(0.2, 0.6, batch), caption, mask


def forward(model: MagiTransformer, batch: int = 1, **options) -> Tensor:
    x, t, caption, mask = tiny_inputs(batch)
    return model.forward_chunk(x, t, caption, mask, first_frame=4, attention=ALONE, **options)
