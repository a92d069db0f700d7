"""What sparse attention costs: FLOPs of kept blocks and of making masks, and the memory that goes with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import require, require_finite
from .mask import blocks
from .method import SparseMethod


def pair_flops(pairs: float, head_dim: int) -> float:
    """Of one head for ``pairs`` of tokens: a product for the score and one for the sum, two operations each."""
    return 4.0 * pairs * head_dim


def attention_share(density: float, method: SparseMethod, predicted: float = 1.0) -> float:
    """FLOPs as a share of dense attention: kept blocks, and masks in the share ``predicted`` of the computed steps."""
    require_finite("density", density, minimum=0.0, maximum=1.0)
    require_finite("predicted", predicted, minimum=0.0, maximum=1.0)
    return density + predicted * method.prediction


@dataclass(frozen=True)
class Forward:
    """Forwards of chunks, ``times`` alike: their tokens and those they attend to, their own included."""

    tokens: int
    context: int
    dense: bool
    times: int = 1

    @property
    def pairs(self) -> int:
        return self.tokens * self.context * self.times


def overall_density(forwards: Sequence[Forward], density: float) -> float:
    """Share of all token pairs that is computed when the forwards that are not dense run at ``density``."""
    computed = sum(forward.pairs * (1.0 if forward.dense else density) for forward in forwards)
    return computed / sum(forward.pairs for forward in forwards)


def least_density(forwards: Sequence[Forward], block: int) -> float:
    """Share of all token pairs that is computed when the forwards that are not dense keep one block in every row, the
    shortest.
    """
    kept = ((one, one.context if one.dense else one.context % block or block) for one in forwards)
    computed = sum(one.pairs * tokens / one.context for one, tokens in kept)
    return computed / sum(one.pairs for one in forwards)


def sparse_density(forwards: Sequence[Forward], overall: float) -> float:
    """At which density the forwards that are not dense must run for an ``overall`` one.

    SettingError (field "density") when the dense ones alone compute as much.
    """
    require_finite("density", overall, minimum=0.0, maximum=1.0)
    total = sum(forward.pairs for forward in forwards)
    taken = sum(forward.pairs for forward in forwards if forward.dense)
    accepted = f"more than {taken / total:.3g}: what the chunks that stay dense take alone in this video"
    if taken == total:
        accepted = "1: no context of this video is long enough to be sparse (dense_chunks, dense_steps, K/V budget)"
    require(overall * total > taken or overall == 1, "density", overall, accepted)
    return (overall * total - taken) / (total - taken) if total > taken else 1.0


def mask_bytes(tokens: int, context: int, block: int, layers: int, heads: int) -> int:
    """Memory of one chunk's masks in all layers, one branch and video."""
    return layers * heads * blocks(tokens, block) * blocks(context, block)
