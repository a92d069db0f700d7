"""Attention mass of blocks, estimated from the antidiagonals of small tiles (XAttention, arXiv 2503.16428)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import require, require_count
from ..options import option
from .mask import blocks

_LOGITS_AT_ONCE = 2**25
"""Most logits held at once (128 MiB); a window of 50 000 tokens has 30 times as many at stride 8."""


def require_stride(block: int, stride: int) -> None:
    """SettingError unless ``stride`` divides ``block``."""
    require_count("stride", stride, minimum=1)
    require(block % stride == 0, "stride", stride, f"a divisor of the block size {block}")


def stride_option() -> Any:
    """The field ``stride`` of a method that scores so."""
    return option(
        16,
        "Tokens that one score stands for, a divisor of the block: 16 costs 3 % of dense attention, 8 twice that and "
        "is more exact.",
        minimum=1,
        maximum=128,
        place=31,
        advanced=True,
    )


def antidiagonal_scores(q: Tensor, k: Tensor, block: int, stride: int) -> Tensor:
    """fp32 ``[B, heads, Qb, Kb]`` for ``q [B, heads, Nq, D]`` and ``k [1 or B, kv_heads, Nk, D]``.

    A logit stands for a tile of ``stride`` x ``stride`` tokens: the mean of the scaled products on its antidiagonal, so
    that every token takes part, at 1 / stride of the cost. Rows of logits go through a softmax; a block's score is
    the sum over its tiles, and a row of blocks adds up to block / stride. What lies behind the last token does not
    exist: a tile is the mean over the pairs it has, one without a pair takes no mass, and a row of tiles without a
    query adds nothing.
    """
    require_stride(block, stride)
    batch, heads, q_tokens, dim = q.shape
    kv_heads, k_tokens = k.shape[1], k.shape[2]
    rows, columns, tiles = blocks(q_tokens, block), blocks(k_tokens, block), block // stride
    dtype = q.dtype if q.is_cuda else torch.float32  # a CPU may lack fast half precision, or emulate it its own way
    queries = _tiles(q.to(dtype) * (dim**-0.5 / stride), rows * block, stride).flip(-2).flatten(-2)
    queries = queries.unflatten(1, (kv_heads, heads // kv_heads))
    keys = _tiles(k.to(dtype), columns * block, stride).flatten(-2).unsqueeze(2).transpose(-1, -2)
    pairs = _pairs(q_tokens, k_tokens, rows * tiles, columns * tiles, stride, q.device)

    per_row = batch * (heads // kv_heads) * columns * tiles * tiles
    heads_at_once = max(1, _LOGITS_AT_ONCE // (per_row * rows))
    rows_at_once = tiles * max(1, _LOGITS_AT_ONCE // (per_row * heads_at_once))
    parts = []
    for first in range(0, kv_heads, heads_at_once):
        several = slice(first, first + heads_at_once)
        strips = []
        for top in range(0, rows * tiles, rows_at_once):
            strip = slice(top, top + rows_at_once)
            logits = torch.matmul(queries[:, several, :, strip], keys[:, several]).float()
            mass = logits.softmax(-1) if pairs is None else _mass(logits, pairs[strip], stride)
            strips.append(mass.unflatten(-1, (columns, tiles)).sum(-1).unflatten(-2, (-1, tiles)).sum(-2))
        parts.append(torch.cat(strips, -2))
    return torch.cat(parts, 1).flatten(1, 2)


def _tiles(x: Tensor, tokens: int, stride: int) -> Tensor:
    """``[B, heads, N, D]`` as ``[B, heads, tiles, stride, D]``, zeros behind the last token up to ``tokens``."""
    missing = tokens - x.shape[2]
    return (F.pad(x, (0, 0, 0, missing)) if missing else x).unflatten(2, (-1, stride))


def _pairs(q_tokens: int, k_tokens: int, rows: int, columns: int, stride: int, device: torch.device) -> Tensor | None:
    """fp32 ``[rows, columns]``: antidiagonal pairs that exist in every tile; None when all of them do everywhere."""
    if q_tokens == rows * stride and k_tokens == columns * stride:
        return None
    queries = (q_tokens - stride * torch.arange(rows, device=device)).clamp(0, stride)
    keys = (k_tokens - stride * torch.arange(columns, device=device)).clamp(0, stride)
    return (queries[:, None] + keys - stride).clamp_min(0).float()  # the antidiagonal starts at the last query


def _mass(logits: Tensor, pairs: Tensor, stride: int) -> Tensor:
    """Softmax of logits that are sums over ``pairs`` divided by ``stride``, where some pairs are missing."""
    missing = pairs == 0
    logits = (logits * (stride / pairs.clamp_min(1))).masked_fill_(missing, -torch.inf)
    return logits.softmax(-1).masked_fill_(missing, 0.0)  # a row without any pair is NaN before
