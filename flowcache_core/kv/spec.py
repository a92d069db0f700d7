"""What a model's K/V looks like: enough to allocate a cache and to count its bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class KVSpec:
    """Shape of a model's K/V: enough to allocate a cache and to count its bytes.

    ``dtype`` and ``device`` are the model's; a cache may store in others (``KVSettings``). ``query_heads``: where
    several of them share a K/V head; None for as many as ``kv_heads``. ``first_head``, ``all_kv_heads``: where these
    K/V heads stand among the model's, when ranks share them; None when they are all.
    ``all_branches``: of the model, likewise.
    ``move``: stored keys ``[..., tokens, head_dim]`` as if they stood so many latent frames later; None where a model
    cannot do that.
    """

    layers: int
    kv_heads: int
    head_dim: int
    tokens_per_frame: int
    branches: int
    batch: int
    dtype: torch.dtype = torch.float32
    device: str | torch.device = "cpu"
    query_heads: int | None = None
    move: Callable[[Tensor, int], Tensor] | None = field(default=None, compare=False, repr=False)
    first_head: int = 0
    all_kv_heads: int | None = None
    all_branches: int | None = None

    @property
    def token_bytes(self) -> int:
        """Of one token's keys and values as computed, all layers, branches and videos together."""
        one = 2 * self.kv_heads * self.head_dim * self.dtype.itemsize
        return self.layers * self.branches * self.batch * one

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.kv_heads if self.query_heads is None else self.query_heads

    def of_heads(self, count: int) -> KVSpec:
        """Of ``count`` of these K/V heads, and the queries that share them."""
        queries = None if self.query_heads is None else self.query_heads // self.kv_heads * count
        return replace(self, kv_heads=count, query_heads=queries, all_kv_heads=self.all_kv_heads or self.kv_heads)

    @property
    def whole(self) -> KVSpec:
        """The K/V of all ranks together."""
        kv_heads = self.all_kv_heads or self.kv_heads
        return replace(
            self,
            kv_heads=kv_heads,
            branches=self.all_branches or self.branches,
            query_heads=None if self.query_heads is None else self.query_heads * kv_heads // self.kv_heads,
            first_head=0,
            all_kv_heads=None,
            all_branches=None,
        )
