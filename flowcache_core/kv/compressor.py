"""What all compressors share: which tokens survive, given a score per token.

A compressor only scores. Selection, order and ties are decided here, once, so that every method keeps exactly as many
tokens as it is asked to, in temporal order, on every backend alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..background import sent
from ..errors import require
from ..fields import require_types
from ..options import option

Granularity = Literal["token", "frame", "chunk"]


@dataclass(frozen=True)
class Region:
    """The clean tokens of one layer and branch that a compressor may drop, oldest first.

    ``keys`` and ``values`` ``[N, kv_heads, L, d]`` as stored (dtype of the cache, keys with their rotary phase; on the
    model's device where the compressor's ``looks_at`` names them);
    ``queries`` ``[N, q_heads, Lq, d]`` of the chunk computed last, None when the method asked for none or none has been
    computed; ``positions`` ``[N, kv_heads, L]`` token index in the video (frame * tokens_per_frame + place in frame);
    ``chunk_starts`` first position of every chunk; ``chunk_tokens`` of the largest chunk, the unit of a
    budget; ``event`` counts this layer's compressions from 0; ``first_head`` and ``all_heads``: where these K/V heads
    stand among the model's, None when they are all; ``change`` fp32 ``[N, kv_heads, L]``: how much a token's latents
    still changed behind the step that :meth:`Compressor.probe_step` names, None where nobody asked or knows.
    """

    keys: Tensor
    values: Tensor
    queries: Tensor | None
    positions: Tensor
    tokens_per_frame: int
    chunk_tokens: int
    chunk_starts: tuple[int, ...]
    layer: int
    event: int
    first_head: int = 0
    all_heads: int | None = None
    change: Tensor | None = None


@dataclass(frozen=True)
class Compressor(ABC):
    """Base of all compressors. A subclass has a ``name``, its settings as fields, and :meth:`score`.

    ``key_granularity``: what is kept or dropped together. With ``frame`` and ``chunk`` a group's score is the mean over
    its tokens; whole groups are kept from the best down, and of the group at the cut its best tokens, so that the whole
    budget is used.
    """

    name: ClassVar[str]
    merges: ClassVar[bool] = False
    """Whether dropped tokens go into kept ones (:meth:`taken_over`), which then stand for several."""
    by_place: ClassVar[bool] = False
    """Whether the score depends on the place in the video alone, the same for all branches and heads."""
    looks_at: ClassVar[frozenset[str]] = frozenset({"keys", "values"})
    """What of the stored tensors the score reads: only that is brought to the model's device from a cache that lies
    elsewhere, and the positions with it. With nothing to read the scores are made where the cache lies."""

    key_granularity: Granularity = option(
        "token",
        "What is kept or dropped together: single tokens, whole latent frames or whole chunks.",
        choices=get_args(Granularity),
        place=1,
        advanced=True,
    )

    def __post_init__(self) -> None:
        require_types(self)
        accepted = get_args(Granularity)
        require(self.key_granularity in accepted, "key_granularity", self.key_granularity, " or ".join(accepted))

    @property
    def reorders(self) -> bool:
        """Whether kept tokens are stored in another order than that of their places in the video."""
        return False

    @property
    def min_budget(self) -> float:
        """The smallest budget, in chunks, with which the method still is itself."""
        return 1.0

    @property
    def accepted_budget(self) -> str:
        """For the error about a smaller one: what the method needs, with the field it follows from."""
        return f"a number >= {self.min_budget:g}"

    def query_rows(self, chunk_tokens: int, tokens_per_frame: int) -> int:
        """How many of a chunk's last queries the method wants to see; 0 for none."""
        return 0

    def probe_step(self, steps: int) -> int | None:
        """A chunk's step at which its predicted latents are to be kept for ``Region.change``; None for none."""
        return None

    def taken_over(self, region: Region, kept: Tensor) -> Tensor:
        """int64 ``[N, kv_heads, L]``: which of the ``kept`` tokens (by its place among them) a token goes into, a kept
        one into itself; -1 where it is lost. Only where :attr:`merges`."""
        raise NotImplementedError(f"{self.name} merges nothing")

    @abstractmethod
    def score(self, region: Region) -> Tensor:
        """fp32 ``[N, kv_heads, L]``: the higher, the sooner a token is kept."""

    def keep(self, region: Region, count: int) -> Tensor:
        """int64 ``[N, kv_heads, count]``: the kept tokens of every head, ascending unless the method says so."""
        # A host may run the model under autocast; scores in bf16 would leave some 20 distinct values per head.
        device = region.positions.device.type
        # Asked only where it is on: a backend without autocast of its own refuses to switch it off.
        on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        full = torch.autocast(device, enabled=False) if on else nullcontext()
        with torch.no_grad(), full:
            scores = self.score(region)
            if scores.shape != region.keys.shape[:3]:
                raise RuntimeError(f"{self.name}: scores {tuple(scores.shape)} for keys {tuple(region.keys.shape)}")
            return self.select(scores, region, count)

    def select(self, scores: Tensor, region: Region, count: int) -> Tensor:
        """The ``count`` best tokens of ``scores`` ``[N, kv_heads, L]``, ascending; of equal ones the earlier."""
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        if self.key_granularity != "token":
            rank = self._group_rank(scores, region)
            order = order.gather(-1, rank.gather(-1, order).sort(dim=-1, stable=True).indices)
        return self.in_order(order[..., :count])

    def in_order(self, best: Tensor) -> Tensor:
        """The kept tokens ``[N, kv_heads, count]``, given from the best down, as they shall be stored."""
        return best.sort(dim=-1).values

    def _group_rank(self, scores: Tensor, region: Region) -> Tensor:
        """Rank of every token's frame or chunk by mean score ``[N, kv_heads, L]``; 0 is the best group."""
        positions = region.positions.long()
        if self.key_granularity == "frame":
            group = positions // region.tokens_per_frame
            groups = (region.chunk_starts[-1] + region.chunk_tokens) // region.tokens_per_frame
        else:
            starts = sent(torch.tensor(region.chunk_starts), positions.device)
            group = torch.bucketize(positions, starts, right=True) - 1
            groups = len(region.chunk_starts)
        # Whole numbers add up to the same sum in any order; floating-point scatter differs from run to run on a GPU.
        # The scale is the power of two below the largest score (its exponent bits alone): equal means stay equal.
        peak = scores.float().abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        scale = (peak.view(torch.int32) & 0x7F800000).view(torch.float32)
        fixed = (scores / scale * 2**30).round().long()
        empty = fixed.new_zeros(*scores.shape[:2], groups)
        count = empty.scatter_add(-1, group, torch.ones_like(group))
        mean = empty.scatter_add(-1, group, fixed).div(count.clamp_min(1), rounding_mode="floor")
        order = mean.masked_fill(count == 0, -(2**40)).sort(dim=-1, descending=True, stable=True).indices
        return order.argsort(dim=-1).gather(-1, group)
