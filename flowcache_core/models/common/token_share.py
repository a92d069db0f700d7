"""Which of a forward's tokens go through the blocks here, the seam for a forward that several ranks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

Grid = tuple[int, int]
"""Runs of tokens of equal length, such as the frames of a chunk, and places in each: their product is all tokens."""


class TokenShare(Protocol):
    """One rank's part of the tokens of a forward: the same places of every run. Everything in a block but
    self-attention works on the part alone.
    """

    def take(self, x: Tensor, dim: int) -> Tensor:
        """This rank's part of ``x`` along ``dim``, the places of a run."""
        ...

    def join(self, x: Tensor, dim: int, places: int) -> Tensor:
        """All ranks' parts of ``x`` along ``dim``, in order, on every rank."""
        ...

    def to_heads(self, tensors: Sequence[Tensor], grid: Grid) -> list[Tensor]:
        """q, k and v of this rank's tokens ``[B, heads, own tokens, head_dim]`` to those of all tokens, of its own
        heads only."""
        ...

    def to_tokens(self, x: Tensor, grid: Grid) -> Tensor:
        """The way back: ``x [B, own heads, all tokens, head_dim]`` to all heads of this rank's tokens."""
        ...
