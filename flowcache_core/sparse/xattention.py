"""Keep the blocks that hold most of a row's attention (XAttention, arXiv 2503.16428)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..background import sent
from ..errors import require
from ..options import option
from .antidiagonal import antidiagonal_scores, require_stride, stride_option
from .cost import Forward
from .method import SparseMethod, fixed_point

_P_STEPS = 2**22
"""p in whole steps; with a row's total below 2**41 (see method.FIXED_POINT) products fit into 64 bits."""

ACCEPTED_P = "a number above 0 and at most 1"


@dataclass(frozen=True)
class XAttention(SparseMethod):
    """Antidiagonal scores, then the fewest blocks of a row that reach the share ``p`` of its mass.

    p: one number, or one for each head of each layer (``p[layer][head]``), as the calibration by measured error gives
    it; 1 keeps every block. stride: width of the tiles that are scored, a divisor of ``block``; the larger, the cheaper
    and the coarser (the paper: 8 or 16 at blocks of 128, p 0.9).
    """

    name: ClassVar[str] = "xattention"

    p: float | Sequence[Sequence[float]] = option(
        0.9,
        "Share of its attention that every row of blocks keeps, by estimate. Lower computes less and is less exact; 1 "
        "leaves nothing out, bit for bit.",
        minimum=0.01,
        maximum=1.0,
        step=0.01,
        place=10,
    )
    stride: int = stride_option()
    tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_stride(self.block, self.stride)
        if isinstance(self.p, Sequence) and not isinstance(self.p, str):
            rows = all(isinstance(row, Sequence) and not isinstance(row, str) and len(row) > 0 for row in self.p)
            require(rows and len(self.p) > 0, "p", self.p, f"{ACCEPTED_P}, or one list of them per layer")
            object.__setattr__(self, "p", tuple(map(tuple, self.p)))
            for layer, row in enumerate(self.p):
                for head, p in enumerate(row):
                    require_p(f"p of layer {layer}, head {head}", p)
        else:
            require_p("p", self.p)

    @property
    def prediction(self) -> float:
        return 0.5 / self.stride

    def score(self, q: Tensor, k: Tensor) -> Tensor:
        return antidiagonal_scores(q, k, self.block, self.stride)

    def select(self, scores: Tensor, layer: int, heads: Sequence[int]) -> Tensor:
        if not isinstance(self.p, Sequence):
            return torch.ones_like(scores, dtype=torch.bool) if self.p == 1 else top_p(scores, self.p)
        row = self._table(scores.device)[layer]
        steps = row if len(heads) == len(row) else torch.stack([row[head] for head in heads])
        kept = _top_p(scores, steps.reshape(-1, 1, 1))
        if 1 in self.p[layer]:  # blocks too light to count are kept too
            kept |= (steps == _P_STEPS).reshape(-1, 1, 1)
        return kept

    def fitted(self, forwards: Sequence[Forward]) -> SparseMethod:
        return replace(self)  # what it keeps on a device ends with the run

    def dense(self, layer: int) -> bool:
        return self.p == 1 if not isinstance(self.p, Sequence) else all(p == 1 for p in self.p[layer])

    def check_model(self, layers: int, heads: int) -> None:
        if isinstance(self.p, Sequence):
            given = [len(row) for row in self.p]
            counts = " or ".join(map(str, sorted(set(given))))
            accepted = f"a table for this model: {layers} layers of {heads} heads"
            require(given == [heads] * layers, "p", f"a table of {len(given)} layers of {counts} heads", accepted)

    def of_heads(self, heads: range) -> SparseMethod:
        if not isinstance(self.p, Sequence):
            return self
        return replace(self, p=tuple(row[heads.start : heads.stop] for row in self.p))

    def _table(self, device: torch.device) -> Tensor:
        """int64 ``[layers, heads]``: p in steps, copied to ``device`` once."""
        assert isinstance(self.p, Sequence)
        if device not in self.tables:
            self.tables[device] = sent(torch.tensor([[_steps(p) for p in row] for row in self.p]), device)
        return self.tables[device]


def require_p(field: str, p: float) -> None:
    """SettingError unless ``p`` lies in (0, 1]."""
    ok = isinstance(p, int | float) and not isinstance(p, bool) and 0 < p <= 1
    require(ok, field, p, ACCEPTED_P)


def top_p(scores: Tensor, p: float | Tensor) -> Tensor:
    """bool like ``scores [..., heads, Qb, Kb]``: from the best block down (of equal ones the earlier first), a block is
    kept while the mass of those before it is below ``p`` times the row's total. ``p``: one number, or ``[heads]``.
    """
    steps = torch.tensor([_steps(one) for one in p.flatten().tolist()]) if isinstance(p, Tensor) else _steps(p)
    return _top_p(scores, steps if isinstance(steps, int) else steps.to(scores.device).reshape(-1, 1, 1))


def _steps(p: float) -> int:
    return math.floor(p * _P_STEPS)


def _top_p(scores: Tensor, steps: int | Tensor) -> Tensor:
    mass, order = fixed_point(scores).sort(dim=-1, descending=True, stable=True)
    after = mass.cumsum(-1)
    keep = (after - mass) * _P_STEPS < after[..., -1:] * steps
    return torch.zeros_like(keep).scatter_(-1, order, keep)
