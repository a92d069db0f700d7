"""Attention of a run of tokens to the K/V it may see. Layout everywhere: ``[B, heads, tokens, head_dim]``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def attend_heads(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Every query sees every key. K/V of batch 1 serve all of q's batch. Returns q's shape. bias: added to the logits
    of the keys, ``[B, heads, tokens of k]``."""
    if bias is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.unsqueeze(-2).to(q.dtype))
    batch = q.shape[0]
    if q.requires_grad and q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        return _attend_in_training(q, k, v)
    return F.scaled_dot_product_attention(q, k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """:func:`attend_heads`, heads laid side by side: ``[B, tokens, heads * head_dim]``."""
    return attend_heads(q, k, v).transpose(1, 2).flatten(2)


def _attend_in_training(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain products in autocast's dtype: on a CPU twice as fast forward and backward as torch's fused attention."""
    dtype = torch.get_autocast_dtype("cpu")
    with torch.autocast("cpu", enabled=False):
        weights = ((q * q.shape[-1] ** -0.5).to(dtype) @ k.to(dtype).mT).softmax(-1)
        return weights @ v.to(dtype)


def attend_block_causal(q: Tensor, k: Tensor, v: Tensor, chunk_tokens: Sequence[int]) -> Tensor:
    """Queries of chunk i see the keys of chunks 0..i.

    One call per chunk on a prefix of the keys instead of a mask: half the work, and no dense mask to hold.
    """
    parts, end = [], 0
    for part in q.split(list(chunk_tokens), 2):
        end += part.shape[2]
        parts.append(attend(part, k[:, :, :end], v[:, :, :end]))
    return torch.cat(parts, 1)
