"""Keep keys where few others are: a bank that covers what was seen (DensityKV, arXiv 2608.27922).

The density of a key is the mean of a soft Riesz kernel, ``1 / (distance^2 + width^2)``, over the other keys of its
head. Admission and eviction are one ranking: a new token enters when its place is emptier than that of one in the bank.
DensityKV leaves out the channels that turn with time, so that the same thing at another time is a duplicate; which
those are is the model's business, so it is a share here (``time_channels``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import require_count, require_finite
from ..options import option
from .compressor import Region
from .ends import BetweenEnds

_DISTANCES = 2**25
"""Most distances held at once (128 MiB)."""


@dataclass(frozen=True)
class Density(BetweenEnds):
    """``samples``: tokens, evenly spaced, that a key is compared with; all would cost their square. ``width``: of the
    kernel, in units of a key's usual length. ``time_channels``: share of a head's channels, the first ones, that turn
    with time (Wan: about a third) and are left out.
    """

    name: ClassVar[str] = "density"
    looks_at: ClassVar[frozenset[str]] = frozenset({"keys"})

    width: float = option(
        0.3,
        "Distance between keys below which they count as one, in units of a key's length.",
        minimum=0.01,
        maximum=10.0,
        step=0.01,
        advanced=True,
    )
    time_channels: float = option(
        0.34,
        "Share of a key's channels, the first ones, that turn with time and are left out (Wan: a third).",
        minimum=0.0,
        maximum=0.9,
        step=0.01,
        advanced=True,
    )
    samples: int = option(2048, "Tokens that a key is compared with.", minimum=16, maximum=1_000_000, advanced=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite("width", self.width, minimum=0.01)
        require_finite("time_channels", self.time_channels, minimum=0.0, maximum=0.9)
        require_count("samples", self.samples, minimum=16)

    def score(self, region: Region) -> Tensor:
        keys = region.keys[..., round(self.time_channels * region.keys.shape[-1] / 2) * 2 :].float()
        scale = keys.square().sum(-1).mean(-1).clamp_min(1e-12).rsqrt()  # one over a key's usual length
        return self.between(-density(keys * scale[..., None, None], self.samples, self.width), region)


def density(keys: Tensor, samples: int, width: float) -> Tensor:
    """Mean kernel ``[N, heads, L]`` of every key to at most ``samples`` others, evenly spaced."""
    length = keys.shape[2]
    count = min(samples, length)
    seen = keys[:, :, torch.arange(count, device=keys.device) * length // count]
    own, others = keys.square().sum(-1, keepdim=True), seen.square().sum(-1).unsqueeze(-2)
    block = max(1, _DISTANCES // (keys.shape[0] * keys.shape[1] * count))
    parts = []
    for part, size in zip(keys.split(block, 2), own.split(block, 2), strict=True):
        squares = (size + others - 2 * part @ seen.mT).clamp_min_(0.0)
        parts.append((squares + width**2).reciprocal_().mean(-1))
    return torch.cat(parts, 2)
