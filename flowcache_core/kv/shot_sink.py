"""A sink for the video and one for the shot that is on (multi-shot sinks: LongLive 2.0)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import require, require_count
from ..options import option
from .compressor import Region
from .sink_window import SinkWindow


@dataclass(frozen=True)
class ShotSink(SinkWindow):
    """Beside the sink at the start of the video as many chunks at the start of the newest shot stay."""

    name: ClassVar[str] = "shot-sink"

    shots: tuple[int, ...] = option(
        (), "Chunks at which a new shot begins, with commas between them, rising; the first shot needs none."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for shot in self.shots:
            require_count("shots", shot, minimum=1)
        rising = list(self.shots) == sorted(set(self.shots))
        require(rising, "shots", self.shots, "rising chunk numbers, each once")
        require(not self.reposition, "reposition", True, "off with shot-sink, whose shots have places of their own")

    @property
    def min_budget(self) -> float:
        return (2 if self.shots else 1) * self.sink + 1.0

    @property
    def accepted_budget(self) -> str:
        sinks = f"the {self.sink:g} chunks of each sink and the newest one; or a smaller sink"
        return f"a number >= {self.min_budget:g}: {sinks}"

    def score(self, region: Region) -> Tensor:
        scores, positions = super().score(region), region.positions
        starts = [region.chunk_starts[shot] for shot in self.shots if shot < len(region.chunk_starts)]
        if not starts:
            return scores
        # Which shots have begun is told by the tokens themselves, on their device.
        begun = torch.stack([(positions >= start).any(-1, keepdim=True) * start for start in starts]).amax(0)
        own = (positions >= begun) & (positions < begun + self.sink_tokens(region.chunk_tokens)) & (begun > 0)
        return torch.where(own, 2.0**25, scores)
