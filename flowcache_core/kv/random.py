"""Keep tokens at random: the control that shows what the choice of tokens is worth at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..background import sent
from ..errors import require_count
from ..options import option, replaced
from .compressor import Compressor, Granularity, Region


@dataclass(frozen=True)
class Random(Compressor):
    """Depends on ``seed``, layer and event only: not on the device, the global generators or the branch."""

    name: ClassVar[str] = "random"
    looks_at: ClassVar[frozenset[str]] = frozenset()

    key_granularity: Granularity = replaced(Compressor, "key_granularity", "token", optional=True)
    seed: int = option(0, "Which tokens are kept; only for comparison.", minimum=0, maximum=2**32 - 1, advanced=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("seed", self.seed, minimum=0, maximum=2**32 - 1)

    def score(self, region: Region) -> Tensor:
        # Layers and events stay far below 2**12 and 2**19, so no two of them share a stream.
        stream = (self.seed << 31) | (region.layer << 19) | region.event
        generator = torch.Generator().manual_seed(stream)
        batch, heads, tokens = region.keys.shape[:3]
        # Drawn for all heads of the model, so that a rank with some of them keeps the same tokens.
        scores = torch.rand(batch, region.all_heads or heads, tokens, generator=generator)
        return sent(scores[:, region.first_head : region.first_head + heads], region.positions.device)
