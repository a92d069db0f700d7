"""The same number of blocks in every row: the control without calibration and without measured mass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from .antidiagonal import antidiagonal_scores, require_stride, stride_option
from .cost import Forward, sparse_density
from .method import SparseMethod, density_option, keep_best, row_count
from .xattention import require_p


@dataclass(frozen=True)
class TopK(SparseMethod):
    """Antidiagonal scores as in XAttention, then the best ``density * Kb`` blocks of every row, whatever they hold.

    density: share of a row's blocks, rounded to whole ones, at least one; in a run, of all its self-attention, what
    stays dense included. stride: see :class:`XAttention`.
    """

    name: ClassVar[str] = "top-k"

    density: float = density_option()
    stride: int = stride_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        require_stride(self.block, self.stride)
        require_p("density", self.density)

    @property
    def prediction(self) -> float:
        return 0.5 / self.stride

    def score(self, q: Tensor, k: Tensor) -> Tensor:
        return antidiagonal_scores(q, k, self.block, self.stride)

    def select(self, scores: Tensor, layer: int, heads: Sequence[int]) -> Tensor:
        return keep_best(scores, row_count(self.density, scores.shape[-1]))

    def dense(self, layer: int) -> bool:
        return self.density == 1

    def fitted(self, forwards: Sequence[Forward]) -> SparseMethod:
        return replace(self, density=sparse_density(forwards, self.density))
