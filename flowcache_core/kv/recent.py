"""Keep the most recent tokens: a sliding window, the control that every other method should beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .compressor import Compressor, Region


@dataclass(frozen=True)
class Recent(Compressor):
    name: ClassVar[str] = "recent"
    by_place: ClassVar[bool] = True
    looks_at: ClassVar[frozenset[str]] = frozenset()

    def score(self, region: Region) -> Tensor:
        return region.positions.float()
