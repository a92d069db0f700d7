"""How tokens become bytes and back: what a codec is.

A token's **rows** are its own and go where it goes. A **table** entry is shared by the tokens of a group, those packed
together; every token remembers its group's slot in the table. So dropping tokens never touches the bytes of others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

Rows = dict[str, Tensor]
"""name -> ``[..., tokens, width]``."""
Entry = dict[str, Tensor]
"""name -> ``[..., *shape]``: what a group shares."""
Table = Mapping[str, Tensor]
"""name -> ``[..., slots, *shape]``."""


class Codec(ABC):
    """Encodes ``[..., tokens, head_dim]``. Arithmetic is fp32 whatever the dtype of the tokens."""

    head_dim: int

    @property
    @abstractmethod
    def rows(self) -> dict[str, tuple[int, torch.dtype]]:
        """Width and dtype of every part of a token's own bytes."""

    @property
    def table(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of every part of what a group shares; nothing by default."""
        return {}

    def fit(self, tokens: Tensor) -> Entry:
        """What the group ``[..., tokens, head_dim]`` shall share."""
        return {}

    @abstractmethod
    def encode(self, tokens: Tensor, entry: Entry) -> Rows:
        """The rows of ``[..., tokens, head_dim]`` in a group that shares ``entry``."""

    @abstractmethod
    def decode(self, rows: Mapping[str, Tensor], table: Table, slot: Tensor, out: Tensor) -> None:
        """Fill ``out [..., tokens, head_dim]`` (any dtype); ``slot [..., tokens]`` int64 of every token."""

    def join(self, table: Table, order: Tensor, joined: Tensor) -> Entry:
        """One entry for all groups of a mask ``joined [..., slots]``; ``order [..., 1]``: the one with most tokens."""
        return {}


def at(entry: Tensor, slot: Tensor) -> Tensor:
    """``entry [..., slots, width]`` of every token, ``[..., tokens, width]``."""
    return entry.gather(-2, slot.unsqueeze(-1).expand(*slot.shape, entry.shape[-1]))
