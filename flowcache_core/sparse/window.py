"""The nearest blocks: the control that does not look at the content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .cost import Forward, sparse_density
from .mask import blocks
from .method import SparseMethod, density_option, keep_best, row_count
from .xattention import require_p


@dataclass(frozen=True)
class Window(SparseMethod):
    """Keeps the ``density * Kb`` blocks of the context that lie nearest to a row's own, rounded, at least one.

    In a run the density is of all its self-attention, what stays dense included. The queries are those of the newest
    keys, so an early row of a chunk sees its own chunk and what came before it.
    """

    name: ClassVar[str] = "window"

    density: float = density_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_p("density", self.density)

    def score(self, q: Tensor, k: Tensor) -> Tensor:
        """Minus the distance between the middles of two blocks, in half tokens."""
        queries, keys = (self._middles(n.shape[2], q.device) for n in (q, k))
        distance = (queries + 2 * (k.shape[2] - q.shape[2])).unsqueeze(-1) - keys
        return -distance.abs().float().expand(q.shape[0], q.shape[1], -1, -1)

    def select(self, scores: Tensor, layer: int, heads: Sequence[int]) -> Tensor:
        return keep_best(scores, row_count(self.density, scores.shape[-1]))

    def dense(self, layer: int) -> bool:
        return self.density == 1

    def fitted(self, forwards: Sequence[Forward]) -> SparseMethod:
        return replace(self, density=sparse_density(forwards, self.density))

    def _middles(self, tokens: int, device: torch.device) -> Tensor:
        starts = torch.arange(blocks(tokens, self.block), device=device) * self.block
        return starts + (starts + self.block).clamp_max(tokens)
