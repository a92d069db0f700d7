"""Keep what is attended to and unlike the rest (FlowCache, arXiv 2602.10825, section 3.3, Eq. 9-12 and 20)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import require, require_count, require_finite
from ..options import option
from .compressor import Compressor, Granularity, Region

QUERY_TOKENS = 50
"""Query rows at token granularity (paper, appendix D.2)."""

_LOGITS_PER_BLOCK = 2**25
"""Most attention logits held at once (128 MiB): a chunk's queries against its history would need gigabytes."""


@dataclass(frozen=True)
class ImportanceRedundancy(Compressor):
    """``score = mix_lambda * importance - (1 - mix_lambda) * redundancy`` (Eq. 12).

    ``pool_kernel``: tokens of the max-pool that lets neighbours of an important token share its importance (Eq. 10).
    ``query_granularity``: which queries of the chunk computed last ask for importance: its last 50 tokens, its last
    frame, or all of it. Without queries, importance is the same for every token and redundancy decides.
    ``reference_order``: kept tokens stand in the order of their scores, the best first.
    """

    name: ClassVar[str] = "importance-redundancy"
    looks_at: ClassVar[frozenset[str]] = frozenset({"keys"})

    mix_lambda: float = option(
        0.07,
        "Weight of importance (what the newest chunk attends to) against redundancy (what resembles the rest): 0 drops "
        "only duplicates, 1 keeps only what is attended to.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    pool_kernel: int = option(
        7,
        "Neighbouring tokens that share the importance of the most important of them; odd.",
        minimum=1,
        maximum=99,
        step=2,
        advanced=True,
    )
    query_granularity: Granularity = option(
        "token",
        "Which queries of the newest chunk ask for importance: its last 50 tokens, its last frame, all.",
        choices=get_args(Granularity),
        place=2,
        advanced=True,
    )

    reference_order: bool = option(
        False,
        "Store what is kept from the best token down, as the published code does, and not in the video's order. It "
        "changes which tokens are neighbours at the next compression. To repeat the paper.",
        optional=True,
        place=3,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_finite("mix_lambda", self.mix_lambda, minimum=0.0, maximum=1.0)
        require_count("pool_kernel", self.pool_kernel, minimum=1)
        require(self.pool_kernel % 2 == 1, "pool_kernel", self.pool_kernel, "an odd whole number")
        accepted = get_args(Granularity)
        require(self.query_granularity in accepted, "query_granularity", self.query_granularity, " or ".join(accepted))
        single = not self.reference_order or self.key_granularity == "token"
        require(single, "reference_order", True, f"off with key_granularity {self.key_granularity}: tokens have ranks")

    @property
    def reorders(self) -> bool:
        return self.reference_order

    def in_order(self, best: Tensor) -> Tensor:
        return best if self.reference_order else super().in_order(best)

    def query_rows(self, chunk_tokens: int, tokens_per_frame: int) -> int:
        rows = {"token": QUERY_TOKENS, "frame": tokens_per_frame, "chunk": chunk_tokens}[self.query_granularity]
        return min(rows, chunk_tokens)

    def score(self, region: Region) -> Tensor:
        keys = region.keys.float()
        scores = -(1.0 - self.mix_lambda) * redundancy(keys)
        if region.queries is not None:
            scores += self.mix_lambda * importance(keys, region.queries.float(), self.pool_kernel)
        return scores


def importance(keys: Tensor, queries: Tensor, pool_kernel: int) -> Tensor:
    """Mean attention that ``keys`` ``[N, kv_heads, L, d]`` get from ``queries`` ``[N, q_heads, Lq, d]``, max-pooled
    over neighbouring tokens (Eq. 9, 10). Query heads that share a K/V head vote by their largest logit.
    """
    n, heads, length, dim = keys.shape
    rows = queries.shape[2]
    grouped = queries.reshape(n, heads, -1, rows, dim) * dim**-0.5
    block = max(1, _LOGITS_PER_BLOCK // (n * queries.shape[1] * length))
    total = keys.new_zeros(n, heads, length)
    for part in grouped.split(block, dim=3):
        logits = torch.matmul(part.flatten(2, 3), keys.transpose(-1, -2)).unflatten(2, part.shape[2:4]).amax(2)
        total += logits.softmax(-1).sum(-2)
    return functional.max_pool1d(total / rows, pool_kernel, stride=1, padding=pool_kernel // 2)


def redundancy(keys: Tensor) -> Tensor:
    """Softmax over tokens of the mean cosine similarity to all other tokens (Eq. 11), ``[N, kv_heads, L]``.

    The sum of similarities is the similarity to the sum (Eq. 20): linear in L, and the normalised keys never exist.
    """
    norm = torch.linalg.vector_norm(keys, dim=-1)
    inverse = norm.clamp_min(1e-8).reciprocal()
    direction = torch.matmul(inverse.unsqueeze(-2), keys)
    similarity = torch.matmul(keys, direction.transpose(-1, -2)).squeeze(-1) * inverse
    itself = (norm * inverse).square()
    return ((similarity - itself) / keys.shape[2]).softmax(-1)
