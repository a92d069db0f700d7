"""Which blocks of keys a block of queries attends to, per batch item and head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import require, require_count


@dataclass(frozen=True)
class SparseMask:
    """``kept`` bool ``[batch, heads, Qb, Kb]`` over blocks of ``block`` tokens; the last blocks may be shorter.

    Blocks count from token 0 of the queries and from token 0 of the context, so Qb = ceil(q_tokens / block). A batch or
    heads of 1 hold for all. Lives on the device of the queries; nothing here waits for it.
    """

    kept: Tensor
    block: int
    q_tokens: int
    k_tokens: int

    def __post_init__(self) -> None:
        for name, count in (("block", self.block), ("q_tokens", self.q_tokens), ("k_tokens", self.k_tokens)):
            require_count(name, count, minimum=1)
        rows, columns = blocks(self.q_tokens, self.block), blocks(self.k_tokens, self.block)
        ok = self.kept.dim() == 4 and self.kept.shape[2:] == (rows, columns) and self.kept.dtype == torch.bool
        require(ok, "kept", f"{self.kept.dtype} {tuple(self.kept.shape)}", f"bool [batch, heads, {rows}, {columns}]")

    def kept_pairs(self) -> Tensor:
        """int64 ``[batch, heads]``: pairs of query and key tokens that are computed."""
        device = self.kept.device
        keys = (self.kept * block_sizes(self.k_tokens, self.block, device)).sum(-1)
        return (keys * block_sizes(self.q_tokens, self.block, device)).sum(-1)

    def density(self) -> Tensor:
        """fp32 ``[batch, heads]``: share of all token pairs that is computed."""
        return self.kept_pairs().float() / (self.q_tokens * self.k_tokens)

    def for_heads(self, batch: int, heads: int) -> Tensor:
        """``kept`` as ``[batch, heads, Qb, Kb]``; SettingError when it holds for other numbers of them."""
        ok = self.kept.shape[0] in (1, batch) and self.kept.shape[1] in (1, heads)
        require(ok, "mask", tuple(self.kept.shape), f"1 or {batch} batch items and 1 or {heads} heads")
        return self.kept.expand(batch, heads, -1, -1)


def blocks(tokens: int, block: int) -> int:
    """Blocks that ``tokens`` take, the last one perhaps not full."""
    return -(-tokens // block)


def block_sizes(tokens: int, block: int, device: torch.device | None = None) -> Tensor:
    """int64 ``[blocks]``: tokens of every block."""
    starts = torch.arange(0, tokens, block, device=device)
    return (tokens - starts).clamp_max(block)
