"""Every head its own: heads that look nearby keep a window, the others a bank of what they look at.

Which heads look nearby is measured, not shipped: by the share of the newest queries' attention that falls on the newest
chunk, at every compression anew (Forcing-KV, arXiv 2605.09681, and Dummy Forcing, arXiv 2601.20499, tell heads apart by
such masses once and offline).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import require_finite
from ..options import option
from .compressor import Region
from .ends import BetweenEnds
from .importance_redundancy import QUERY_TOKENS, importance


@dataclass(frozen=True)
class HeadWise(BetweenEnds):
    """``local``: share of attention on the newest chunk, of what does not fall on the sink, from which on a head keeps
    the newest tokens. The others rank by attention. Without queries all do by age.
    """

    name: ClassVar[str] = "head-wise"
    looks_at: ClassVar[frozenset[str]] = frozenset({"keys"})

    local: float = option(
        0.6,
        "Share of its attention on the newest chunk, the sink apart, from which on a head keeps a window of the newest "
        "tokens; heads below it keep what they look at.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite("local", self.local, minimum=0.0, maximum=1.0)

    def query_rows(self, chunk_tokens: int, tokens_per_frame: int) -> int:
        return min(QUERY_TOKENS, chunk_tokens)

    def score(self, region: Region) -> Tensor:
        age = region.positions.float()
        if region.queries is None:
            return self.between(age, region)
        mass = importance(region.keys.float(), region.queries.float(), 1)
        outside = region.positions >= round(self.sink * region.chunk_tokens)
        newest = region.positions > region.positions[..., -1:] - region.chunk_tokens
        near = (mass * newest).sum(-1) / (mass * outside).sum(-1).clamp_min(1e-12)
        return self.between(torch.where((near >= self.local).unsqueeze(-1), age, mass), region)
