"""p per head from a calibration, shared out for the density that is asked for (HASTE, arXiv 2605.14513)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from ..errors import require
from .cost import Forward, overall_density, sparse_density
from .head_budget import share_out
from .head_table import HeadTable
from .method import SparseMethod, density_option
from .xattention import XAttention, require_p


@dataclass(frozen=True)
class Calibrated(SparseMethod):
    """XAttention with a p for every head: the least summed error that the table promises at ``density``.

    density: of all self-attention of a run, what stays dense included; outside a run, of the attention at hand. Block
    and stride are the calibration's.
    """

    name: ClassVar[str] = "calibrated"

    block: int = 0
    density: float = density_option()
    table: HeadTable | None = None

    def __post_init__(self) -> None:
        require(isinstance(self.table, HeadTable), "table", self.table, "a calibration's (calibrate-heads)")
        assert self.table is not None
        block = self.table.subject.block
        require(self.block in (0, block), "block", self.block, f"{block}, with which the heads were measured")
        object.__setattr__(self, "block", block)
        super().__post_init__()
        require_p("density", self.density)

    @cached_property
    def shared_out(self) -> XAttention:
        assert self.table is not None
        subject = self.table.subject
        # At 1 nothing is left out, also of heads that showed no error in what was measured.
        whole = ((1.0,) * subject.heads,) * subject.layers
        p = whole if self.density == 1 else share_out(self.table, self.density).p
        return XAttention(subject.block, p, subject.stride)

    @property
    def prediction(self) -> float:
        assert self.table is not None
        return 0.5 / self.table.subject.stride

    def score(self, q: Tensor, k: Tensor) -> Tensor:
        return self.shared_out.score(q, k)

    def select(self, scores: Tensor, layer: int, heads: Sequence[int]) -> Tensor:
        return self.shared_out.select(scores, layer, heads)

    def dense(self, layer: int) -> bool:
        return self.shared_out.dense(layer)

    def check_model(self, layers: int, heads: int) -> None:
        assert self.table is not None
        subject = self.table.subject
        accepted = f"a calibration of this model: {layers} layers of {heads} heads"
        given = f"one of {subject.layers} layers of {subject.heads} heads (model {subject.model[:12]})"
        require((subject.layers, subject.heads) == (layers, heads), "table", given, accepted)

    def fitted(self, forwards: Sequence[Forward]) -> SparseMethod:
        assert self.table is not None
        inner = sparse_density(forwards, self.density)
        least = float(self.table.means()[1].min(1).mean())
        accepted = f"at least {overall_density(forwards, least):.3g}: the sparsest this calibration knows in this video"
        require(inner >= least, "density", self.density, accepted)
        return replace(self, density=inner).shared_out
