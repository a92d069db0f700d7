"""Keep what was still changing late in denoising; what had settled early is told again by what surrounds it (DeCoPrune,
arXiv 2609.39096).

A token's change is the mean squared difference between the clean latents that were predicted at a probe step and those
it ended with. It is the same for all layers and heads. DeCoPrune keeps what exceeds a threshold; here a budget says how
much is kept, so tokens are ranked by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import require_finite
from ..options import option
from .compressor import Region
from .ends import BetweenEnds


@dataclass(frozen=True)
class Settled(BetweenEnds):
    """``probe``: share of a chunk's steps behind which its clean latents are looked at first. Given frames count as
    settled; where no change is known the newer token wins.
    """

    name: ClassVar[str] = "settled"
    looks_at: ClassVar[frozenset[str]] = frozenset()

    probe: float = option(
        0.5,
        "Share of a chunk's steps behind which its prediction is compared with what it became; what changes most "
        "behind it stays.",
        minimum=0.0,
        maximum=0.99,
        step=0.01,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite("probe", self.probe, minimum=0.0, maximum=0.99)

    def probe_step(self, steps: int) -> int | None:
        return min(round(self.probe * steps), steps - 1)

    def score(self, region: Region) -> Tensor:
        seen = region.positions.float() if region.change is None else region.change
        return self.between(seen.expand(region.positions.shape), region)


def token_change(predicted: Tensor, final: Tensor, tokens_per_frame: int) -> Tensor:
    """Mean squared difference ``[B, f * tokens_per_frame]`` fp32 of latents ``[B, C, f, H, W]``, by patch of 2 x 2; a
    last row or column that is left over has a token of its own."""
    squares = (predicted.float() - final.float()).square().mean(1)
    patch = 1 if squares.shape[-2] * squares.shape[-1] == tokens_per_frame else 2
    return functional.avg_pool2d(squares, patch, ceil_mode=True).flatten(1)


@dataclass
class Changes:
    """Of one run's finished tokens: ``table [batch, tokens of the video]``, None before the first."""

    batch: int
    tokens: int
    table: Tensor | None = None

    def note(self, first: int, change: Tensor) -> None:
        """``change [batch, n]`` of the tokens from ``first`` on."""
        if self.table is None:
            self.table = torch.zeros(self.batch, self.tokens, device=change.device)
        self.table[:, first : first + change.shape[1]] = change

    def at(self, positions: Tensor) -> Tensor | None:
        """Of tokens at ``positions [batch, kv_heads, L]``."""
        if self.table is None:
            return None
        table = self.table.to(positions.device).unsqueeze(1).expand(-1, positions.shape[1], -1)
        return table.gather(-1, positions.long())
