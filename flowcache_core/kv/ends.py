"""Compressors that keep both ends of the history whatever their score says: the video's start and its newest chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import require_finite
from ..options import option
from .compressor import Compressor, Region

KEPT = 1e30
"""More than any score, finite: infinity would spoil the means of frames and chunks."""


@dataclass(frozen=True)
class BetweenEnds(Compressor):
    """``sink`` and ``recent``: chunks at the start and at the end that stay, in units of the largest chunk."""

    sink: float = option(
        1.0, "Chunks at the start of the video that always stay.", minimum=0.0, maximum=1000.0, step=0.25
    )
    recent: float = option(1.0, "Newest finished chunks that always stay.", minimum=0.0, maximum=1000.0, step=0.25)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite("sink", self.sink, minimum=0.0)
        require_finite("recent", self.recent, minimum=0.0)

    @property
    def min_budget(self) -> float:
        return max(1.0, self.sink + self.recent)

    @property
    def accepted_budget(self) -> str:
        ends = f"the {self.sink:g} chunks of sink and the {self.recent:g} newest ones; or smaller ends"
        return f"a number >= {self.min_budget:g}: {ends}"

    def between(self, scores: Tensor, region: Region) -> Tensor:
        """``scores`` ``[N, kv_heads, L]`` with the tokens of both ends above all others."""
        return torch.where(self.at_ends(region), KEPT, scores.clamp(-KEPT / 2, KEPT / 2))

    def at_ends(self, region: Region) -> Tensor:
        """Which tokens always stay: bool ``[N, kv_heads, L]``."""
        first, last = (round(chunks * region.chunk_tokens) for chunks in (self.sink, self.recent))
        newest = region.positions[..., -1:]  # the chunk finished last is whole in every head
        return (region.positions < first) | (region.positions > newest - last)
