"""Keep the start of the video and the most recent tokens (attention sinks: StreamingLLM, arXiv 2309.17453)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import require_finite
from ..options import option
from .compressor import Compressor, Region


@dataclass(frozen=True)
class SinkWindow(Compressor):
    """``sink``: chunks at the start of the video that stay, in units of the largest chunk; the rest is a window."""

    name: ClassVar[str] = "sink-window"
    by_place: ClassVar[bool] = True
    looks_at: ClassVar[frozenset[str]] = frozenset()

    sink: float = option(
        1.0,
        "Chunks at the start of the video that always stay; the rest of the budget holds the newest.",
        minimum=0.0,
        maximum=1000.0,
        step=0.25,
    )
    reposition: bool = option(
        False,
        "The model sees the sink right before the window, however much was dropped between them. For videos far longer "
        "than those it was trained on.",
        optional=True,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite("sink", self.sink, minimum=0.0)

    @property
    def min_budget(self) -> float:
        return self.sink + 1.0

    @property
    def accepted_budget(self) -> str:
        newest = f"the {self.sink:g} chunks of sink and the newest one; or a smaller sink, or method recent"
        return f"a number >= {self.min_budget:g}: {newest}"

    def sink_tokens(self, chunk_tokens: int) -> int:
        """Tokens at the start of the video that stay; ``chunk_tokens`` of the largest chunk."""
        return round(self.sink * chunk_tokens)

    def score(self, region: Region) -> Tensor:
        # 2**25 exceeds every position that fp32 can hold exactly; infinity would spoil the means of frames and chunks.
        recency = region.positions.float()
        return torch.where(region.positions < self.sink_tokens(region.chunk_tokens), 2.0**25, recency)
