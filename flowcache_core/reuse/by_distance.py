"""What policies that compare a chunk with its own last step have in common: which distance they take."""

from __future__ import annotations

from dataclasses import dataclass

from ..options import option
from .distance import DISTANCES, Distance, LatentDistance
from .thresholded import Thresholded


@dataclass(frozen=True)
class ByDistance(Thresholded):
    """distance: what is measured between two steps of a chunk. It says whether video or model are asked."""

    distance: Distance = option(
        LatentDistance(),
        "What is compared between two steps: the noisy latents, their patch embedding, or the time modulation "
        "(TeaCache's, the same for every video).",
        parts=DISTANCES,
        place=3,
    )

    @property
    def content_free(self) -> bool:
        return self.distance.content_free

    @property
    def reads_model(self) -> bool:  # type: ignore[override]
        return self.distance.reads_model
