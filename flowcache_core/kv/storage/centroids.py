"""Centroids of a chunk and two-bit residuals (see :mod:`.centroid`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import require_count
from ...options import option
from .base import Packed
from .centroid import Centroids
from .codec import Codec
from .integer import fitting_group
from .ranges import ByToken

LEAST_MEMBERS = 16
"""Tokens for each centroid, at the least: below that the centroids outweigh the tokens."""


@dataclass(frozen=True)
class Centroid(Packed):
    """``centroids`` of a chunk's keys, and as many of its values; fewer in chunks that have not 16 tokens for each."""

    name: ClassVar[str] = "centroid"

    centroids: int = option(
        256, "Centroids of a chunk's keys, and of its values.", minimum=1, maximum=256, optional=True, advanced=True
    )
    iterations: int = option(4, "Rounds of k-means.", minimum=1, maximum=100, optional=True, advanced=True)
    residual_group: int = option(
        0,
        "Neighbouring channels of a token that share the scale of what its centroid leaves over; 0: 64, or the whole "
        "head below that.",
        minimum=0,
        maximum=1024,
        optional=True,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("centroids", self.centroids, minimum=1, maximum=256)
        require_count("iterations", self.iterations, minimum=1, maximum=100)
        require_count("residual_group", self.residual_group, minimum=0)

    def codecs(self, head_dim: int, chunk_tokens: int) -> tuple[Codec, Codec, int]:
        group = fitting_group("residual_group", self.residual_group, head_dim, 2)
        count = max(1, min(self.centroids, chunk_tokens // LEAST_MEMBERS))
        codec = Centroids(head_dim, count, self.iterations, ByToken(head_dim, 2, group))
        return codec, codec, chunk_tokens
