"""Dense attention over the gathered keys of each block of queries: no compiler, the choice on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..mask import SparseMask
from .base import Call, Engine


@dataclass(frozen=True)
class Gather(Engine):
    """Rows of blocks that keep the same keys are one call. Many small calls: too slow on a GPU, and it waits for it."""

    name: ClassVar[str] = "gather"

    def blocker(self, call: Call) -> str | None:
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: SparseMask) -> Tensor:
        out = torch.zeros_like(q)
        group = q.shape[1] // k.shape[1]
        kept = mask.for_heads(*q.shape[:2]).cpu()
        key_blocks = torch.arange(mask.k_tokens, device=k.device).split(mask.block)
        for item in range(q.shape[0]):
            keys, values = (x[item if x.shape[0] > 1 else 0] for x in (k, v))
            for head in range(q.shape[1]):
                for columns, rows in _equal_rows(kept[item, head]).items():
                    if not columns:
                        continue
                    tokens = torch.cat([torch.arange(r * mask.block, (r + 1) * mask.block) for r in rows])
                    tokens = tokens[tokens < mask.q_tokens].to(q.device)
                    seen, said = keys[head // group], values[head // group]
                    if len(columns) < kept.shape[-1]:
                        index = torch.cat([key_blocks[column] for column in columns])
                        seen, said = seen.index_select(0, index), said.index_select(0, index)
                    result = F.scaled_dot_product_attention(q[item, head, tokens][None], seen[None], said[None])
                    out[item, head, tokens] = result[0]
        return out


def _equal_rows(kept: Tensor) -> dict[tuple[int, ...], list[int]]:
    """Kept columns -> the rows of ``kept [Qb, Kb]`` that keep just these."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, columns in enumerate(kept.tolist()):
        groups.setdefault(tuple(column for column, keeps in enumerate(columns) if keeps), []).append(row)
    return groups
