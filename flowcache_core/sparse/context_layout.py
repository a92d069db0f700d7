"""What a chunk's keys are, in order: masks of one layout mean nothing in another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import require_count


@dataclass(frozen=True)
class ContextLayout:
    """``chunks``: index and tokens of every chunk in the context, oldest first, the chunk's own last.

    dropped: tokens that compression has taken out of this memory, in all layers together: afterwards others lie in the
    same places. batch: videos at once. Two equal layouts have every block in the same place.
    """

    chunks: tuple[tuple[int, int], ...]
    dropped: int = 0
    batch: int = 1

    def __post_init__(self) -> None:
        for index, tokens in self.chunks:
            require_count("chunk", index, minimum=0)
            require_count("tokens", tokens, minimum=1)
        require_count("dropped", self.dropped, minimum=0)
        require_count("batch", self.batch, minimum=1)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(tokens for _, tokens in self.chunks)

    def moved_from(self, before: ContextLayout, block: int) -> int | None:
        """By how many blocks a mask of the chunk before, whose layout was ``before``, moves to fit this one: 0 when the
        context has not grown, a chunk when it has grown by one; None when it does not fit by whole blocks.
        """
        if self.batch != before.batch:
            return None
        if self.sizes == before.sizes:
            return 0
        first = before.sizes[0]
        grown = self.sizes == (first, *before.sizes) and self.dropped == before.dropped
        return first // block if grown and first % block == 0 else None


def moved(kept: Tensor, by: int) -> Tensor:
    """``kept [..., Kb]`` for a context that has grown by ``by`` blocks: the first ones stay where they are, so that the
    chunk all others begin from keeps its attention, and everything moves along with the queries.
    """
    return torch.cat((kept[..., :by], kept), -1) if by else kept
