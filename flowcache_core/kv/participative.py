"""Keep what the newest queries point at (Participative Compression of Deep Forcing, arXiv 2512.05081)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .compressor import Region
from .ends import BetweenEnds


@dataclass(frozen=True)
class Participative(BetweenEnds):
    """``score = sum over the newest chunk's queries of q . k`` between sink and newest chunks.

    Sums of products and no softmax, so one product with the sum of the queries is all there is to compute; query heads
    that share a K/V head vote together. Without queries the later token wins.
    """

    name: ClassVar[str] = "participative"
    looks_at: ClassVar[frozenset[str]] = frozenset({"keys"})

    def query_rows(self, chunk_tokens: int, tokens_per_frame: int) -> int:
        return chunk_tokens

    def score(self, region: Region) -> Tensor:
        if region.queries is None:
            return self.between(region.positions.float(), region)
        together = region.queries.float().sum(2).unflatten(1, (region.keys.shape[1], -1)).sum(2)  # [N, kv_heads, d]
        return self.between((region.keys.float() @ together.unsqueeze(-1)).squeeze(-1), region)
