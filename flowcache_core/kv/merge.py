"""Let one token stand for many alike (TempCache of FAST-AR, arXiv 2602.01801): the last key, the mean value, and the
logarithm of their number on the logit.

For tokens of equal keys that is exact: a softmax gives each of n of them the same weight, so n times the weight of one
with the mean of the values is the same sum. For keys that are merely alike it is as close as they are.
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

_DISTANCES = 2**25
"""Most similarities held at once (128 MiB)."""


@dataclass(frozen=True)
class Merge(BetweenEnds):
    """``similarity``: cosine of two keys from which on the older token goes into the newer one. The most alike go
    first, then the oldest, which are lost. What they go into are the newest tokens, those of ``recent``.
    """

    name: ClassVar[str] = "merge"
    merges: ClassVar[bool] = True

    similarity: float = option(
        0.9,
        "Cosine of two keys from which on the older token goes into the newer one; what is less alike is lost.",
        minimum=-1.0,
        maximum=1.0,
        step=0.01,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite("similarity", self.similarity, minimum=-1.0, maximum=1.0)

    def score(self, region: Region) -> Tensor:
        alike, _ = self.nearest(region)
        return self.between(torch.where(alike >= self.similarity, -alike, 1.0 + region.positions.float()), region)

    def taken_over(self, region: Region, kept: Tensor) -> Tensor:
        alike, nearest = self.nearest(region)
        length, count = region.keys.shape[2], kept.shape[-1]
        place = torch.full_like(nearest, -1)
        place.scatter_(-1, kept, torch.arange(count, device=kept.device).expand_as(kept))
        there = torch.where(alike >= self.similarity, place.gather(-1, nearest.clamp(0, length - 1)), -1)
        return torch.where(place >= 0, place, there)

    def nearest(self, region: Region) -> tuple[Tensor, Tensor]:
        """Of every token the largest cosine to a newest token other than itself, and which that is; -2 without any."""
        keys = functional.normalize(region.keys.float(), dim=-1)
        length = keys.shape[2]
        count = min(round(self.recent * region.chunk_tokens), length)
        if count == 0:
            none = torch.full(keys.shape[:3], -2.0, device=keys.device)
            return none, torch.zeros_like(none, dtype=torch.int64)
        newest, first = keys[:, :, length - count :], length - count
        block = max(1, _DISTANCES // (keys.shape[0] * keys.shape[1] * count))
        found = []
        for begin in range(0, first, block):
            found.append((keys[:, :, begin : min(begin + block, first)] @ newest.mT).max(-1))
        alike = torch.cat([*(one.values for one in found), keys.new_full((*keys.shape[:2], count), -2.0)], -1)
        places = [one.indices + first for one in found]
        itself = torch.arange(first, length, device=keys.device).expand(*keys.shape[:2], count)
        return alike, torch.cat([*places, itself], -1)
