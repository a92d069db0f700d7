"""When a mask is made anew and when the one before still serves (Temporal Mask Reuse, HASTE, arXiv 2605.14513)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import require, require_count, require_finite
from ..options import option

NO_MASK = -1
"""Age of a head that has no mask."""


@dataclass(frozen=True)
class MaskReuse:
    """A head's mask serves until the means of its queries and keys have drifted from what they were when it was made.

    drift: how far they may go (equality still serves). relative: as a share of the means themselves, which suits every
    model; the paper's absolute 30 belongs to Wan. gate: where fewer than the first share of a layer's heads want a new
    mask, none gets one, where more than the second, all do (None: each for itself). max_age: computed steps that a mask
    serves, None for no end. across_chunks: a head without a mask that serves takes that of the chunk before at the same
    step, moved by a chunk; costs the memory of a chunk's masks of all steps.
    """

    drift: float = option(
        0.2,
        "How far a head's mean query and key may move, relative to themselves, before it gets a new mask.",
        minimum=0.0,
        maximum=10.0,
        step=0.01,
        place=41,
        advanced=True,
    )
    relative: bool = True
    gate: tuple[float, float] | None = (0.4, 0.8)
    max_age: int | None = option(
        8,
        "Computed steps that a mask serves at most; 0 for no end.",
        minimum=0,
        maximum=1000,
        none=0,
        place=42,
        advanced=True,
    )
    across_chunks: bool = option(
        False,
        "A head without a mask that serves takes that of the chunk before at the same step, moved by a chunk. Costs "
        "the memory of one chunk's masks at all steps.",
        place=43,
        advanced=True,
    )

    def __post_init__(self) -> None:
        require_finite("drift", self.drift, minimum=0.0)
        if self.gate is not None:
            object.__setattr__(self, "gate", tuple(self.gate))
            ok = len(self.gate) == 2 and all(isinstance(share, int | float) for share in self.gate)
            ok = ok and 0 <= self.gate[0] <= self.gate[1] <= 1
            require(ok, "gate", self.gate, "None, or two shares from 0 to 1, ascending")
        if self.max_age is not None:
            require_count("max_age", self.max_age, minimum=1)

    def refresh(self, drift: Tensor, age: Tensor) -> Tensor:
        """bool ``[..., heads]``: heads that need a new mask. On the CPU: ``drift [..., heads]`` from the anchors, NaN
        where there is none, and ``age [..., heads]``, :data:`NO_MASK` without a mask.
        """
        absent = age == NO_MASK
        wish = ~(drift <= self.drift)
        if self.gate is not None:
            low, high = self.gate
            share = wish.sum(-1, keepdim=True).double() / wish.shape[-1]
            gated = (wish & ~(share < low)) | (share > high)
            wish = torch.where(absent.any(-1, keepdim=True), wish, gated)  # where a mask is missing there is no vote
        too_old = torch.zeros_like(absent) if self.max_age is None else age + 1 >= self.max_age
        return wish | absent | too_old


def means(q: Tensor, own_keys: Tensor) -> Tensor:
    """fp32 ``[2, B, heads, D]``: mean query and mean key of every head, of ``q [B, heads, Nq, D]`` and ``own_keys [B,
    kv_heads, N, D]``: the chunk's own, since history does not change between its steps and would hide what does.
    """
    group = q.shape[1] // own_keys.shape[1]
    keys = own_keys.mean(2, dtype=torch.float32).repeat_interleave(group, 1)
    return torch.stack((q.mean(2, dtype=torch.float32), keys.expand(q.shape[0], -1, -1)))


def drift(now: Tensor, anchor: Tensor, relative: bool = True) -> Tensor:
    """fp32 ``[..., heads]``: L1 distance of ``now`` from ``anchor`` (both ``[..., 2, B, heads, D]``), queries and keys
    together, of the batch item that has gone furthest. relative: over the anchor's own L1 norm.
    """
    moved = (now - anchor).abs().sum(-1).sum(-3)
    if relative:
        moved = moved / anchor.abs().sum(-1).sum(-3).clamp_min(torch.finfo(torch.float32).tiny)
    return moved.amax(-2)
