"""What all ways to choose blocks share. A method scores and selects; the mask is put together here, once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..errors import require_count
from ..options import option
from .mask import SparseMask, blocks

if TYPE_CHECKING:
    from .cost import Forward

FIXED_POINT = 2.0**28
"""Scores are added as whole numbers of this fraction: a sum then does not depend on the order of its terms, so every
backend cuts alike. A row's total, which is block / stride at most, stays below 2**41."""


def density_option() -> Any:
    """The field ``density`` of a method that can say it beforehand."""
    return option(
        0.5,
        "Share of the run's self-attention that is computed, the chunks that stay dense included. 1 leaves nothing "
        "out, bit for bit.",
        minimum=0.01,
        maximum=1.0,
        step=0.01,
        place=10,
    )


@dataclass(frozen=True)
class SparseMethod(ABC):
    """Base of all methods. A subclass has a ``name``, its settings as fields, :meth:`score` and :meth:`select`.

    block: tokens of a block of queries and of keys.
    """

    name: ClassVar[str]

    block: int = option(
        128,
        "Tokens of a block: what is kept or left out together. 128 suits GPU kernels; at most a chunk's tokens.",
        minimum=1,
        maximum=1024,
        place=30,
        advanced=True,
    )

    def __post_init__(self) -> None:
        require_count("block", self.block, minimum=1)

    @property
    def prediction(self) -> float:
        """FLOPs of a mask as a share of the dense attention it is for."""
        return 0.0

    @abstractmethod
    def score(self, q: Tensor, k: Tensor) -> Tensor:
        """fp32 ``[B, heads, Qb, Kb]``: the higher, the sooner a block is kept. ``q [B, heads, Nq, D]`` and ``k [1 or B,
        kv_heads, Nk, D]`` as attention gets them; the queries are those of the last Nq keys."""

    @abstractmethod
    def select(self, scores: Tensor, layer: int, heads: Sequence[int]) -> Tensor:
        """bool like ``scores``: the kept blocks, at least one in every row. ``heads`` of the model that these are."""

    def dense(self, layer: int) -> bool:
        """Whether nothing can be left out in ``layer``: then the ordinary attention is called instead."""
        return False

    def check_model(self, layers: int, heads: int) -> None:
        """SettingError when settings per layer or head are not for ``layers`` of ``heads``; most methods have none."""
        return None

    def fitted(self, forwards: Sequence[Forward]) -> SparseMethod:
        """This method for a run of these forwards, where a density of the whole run was asked for: those that stay
        dense take their part of it. SettingError (field "density") when they take all of it.
        """
        return self

    def of_heads(self, heads: range) -> SparseMethod:
        """This method where only these heads of the model are at hand, as on one rank of several."""
        return self

    def mask(self, q: Tensor, k: Tensor, layer: int = 0, heads: Sequence[int] | None = None) -> SparseMask:
        """The mask of ``heads`` (None for all) of one layer, from their queries and keys; see :meth:`score`."""
        chosen = range(q.shape[1]) if heads is None else heads
        rows, columns = blocks(q.shape[2], self.block), blocks(k.shape[2], self.block)
        # A host may run the model under autocast, where the softmax's input would lose half of its digits.
        device = q.device.type
        on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        full = torch.autocast(device, enabled=False) if on else nullcontext()
        with torch.no_grad(), full:
            if columns == 1 or self.dense(layer):
                kept = torch.ones(q.shape[0], len(chosen), rows, columns, dtype=torch.bool, device=q.device)
            else:
                if heads is not None:
                    group = q.shape[1] // k.shape[1]
                    q = torch.stack([q[:, head] for head in heads], 1)  # slices: a list of indices is a copy to the GPU
                    k = torch.stack([k[:, head // group] for head in heads], 1)
                kept = self.select(self.score(q, k), layer, chosen)
        return SparseMask(kept, self.block, q.shape[2], k.shape[2])


def fixed_point(scores: Tensor) -> Tensor:
    """int64 multiples of 1 / :data:`FIXED_POINT`, for rows of scores that add up to some thousands at most."""
    return (scores.float() * FIXED_POINT).round().long()


def keep_best(scores: Tensor, count: int) -> Tensor:
    """bool like ``scores``: the ``count`` best blocks of every row; of equal ones the earlier."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)


def row_count(density: float, columns: int) -> int:
    """Whole blocks of a row of ``columns`` that come nearest to ``density``, at least one."""
    return max(1, int(density * columns + 0.5))
