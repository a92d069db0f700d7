"""Which of a chunk's tokens a partial step computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .background import sent
from .errors import require

Grid = tuple[int, int, int]
"""Latent frames, rows and columns of a chunk's tokens."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Tokens of one chunk in (frame, row, column) order, the same for all videos of the batch.

    index: ``[n]`` ascending, no token twice, n at least 1. grid: of all the chunk's tokens. each: where guidance
    branches compute different ones, those of each, None for none (:meth:`by_branch`); ``index`` then has what any
    computes. What is asked for on a device is copied there once.
    """

    index: Tensor
    grid: Grid
    each: tuple[Rows | None, ...] = ()
    _moved: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        ok = self.index.dim() == 1 and self.index.dtype == torch.int64 and 0 < self.count <= self.tokens
        require(ok, "rows", tuple(self.index.shape), f"1 to {self.tokens} indices, int64")

    @classmethod
    def of(cls, mask: Tensor, grid: Grid) -> Rows:
        """The tokens where ``mask [tokens]``, best on the CPU, is true: how many they are is asked where it lies."""
        return cls(mask.flatten().nonzero().flatten(), grid)

    @classmethod
    def by_branch(cls, each: Sequence[Rows | None], grid: Grid) -> Rows:
        """Other tokens in every branch; at least one has some."""
        some = [rows.mask(rows.index.device) for rows in each if rows is not None]
        index = torch.stack(some).any(0).flatten().nonzero().flatten()
        return cls(index, grid, tuple(each))

    @property
    def shared(self) -> Rows:
        """The same in every branch: what any of them computes."""
        return Rows(self.index, self.grid) if self.each else self

    @property
    def count(self) -> int:
        return self.index.shape[0]

    def share_of(self, tokens: int) -> int:
        """Of so many tokens, those that a branch computes, on average over branches."""
        own = self.each or (self,)
        computed = sum(one.count for one in own if one is not None) / len(own)
        return round(computed / self.tokens * tokens)

    @property
    def tokens(self) -> int:
        """Of the whole chunk."""
        return math.prod(self.grid)

    def on(self, device: torch.device) -> Tensor:
        """The index on ``device``."""
        if self.index.device == device:
            return self.index
        if device not in self._moved:
            self._moved[device] = sent(self.index, device)
        return self._moved[device]

    def mask(self, device: torch.device) -> Tensor:
        """``[frames, rows, columns]`` bool on ``device``."""
        flat = torch.zeros(self.tokens, dtype=torch.bool, device=device)
        return flat.index_fill_(0, self.on(device), True).view(self.grid)

    def pixels(self, latents: Tensor) -> Tensor:
        """The mask over the places of ``latents [..., f, H, W]``, ``[f, H, W]`` on their device.

        A token covers as many places as the grid leaves it, the last of a side that does not divide fewer.
        """
        mask = self.mask(latents.device)
        for dim, size in ((1, latents.shape[-2]), (2, latents.shape[-1])):
            mask = mask.repeat_interleave(-(-size // mask.shape[dim]), dim).narrow(dim, 0, size)
        return mask
