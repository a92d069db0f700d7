"""What Wan 2.1's transformer is built of: attention, block and head, under the official parameter names.

Precision follows the original: normalisation, modulation, rotary embedding and head in fp32, the rest in the dtype of
the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.rope import apply_rope
from .config import WanConfig


class Fp32Linear(nn.Linear):
    """Linear layer computed in fp32 whatever the dtype of its weights."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x.float(), self.weight.float(), bias)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over all heads together, in fp32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps)


class WanAttention(nn.Module):
    """Projections of one attention: queries and keys are normalised before they are split into heads."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.q = nn.Linear(config.dim, config.dim)
        self.k = nn.Linear(config.dim, config.dim)
        self.v = nn.Linear(config.dim, config.dim)
        self.o = nn.Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, config.eps)
        self.norm_k = RMSNorm(config.dim, config.eps)
        self.head_dim = config.head_dim

    def split(self, x: Tensor) -> Tensor:
        """``[B, tokens, dim]`` to ``[B, tokens, heads, head_dim]``."""
        return x.unflatten(-1, (-1, self.head_dim))

    def rotated(self, x: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k (with rotary embedding) and v of ``x [B, tokens, dim]``, each ``[B, heads, tokens, head_dim]``."""
        q = apply_rope(self.split(self.norm_q(self.q(x))), table).to(x.dtype)
        k = apply_rope(self.split(self.norm_k(self.k(x))), table).to(x.dtype)
        return q.transpose(1, 2), k.transpose(1, 2), self.split(self.v(x)).transpose(1, 2)

    def queries(self, x: Tensor) -> Tensor:
        """Queries without rotary embedding, ``[B, heads, tokens, head_dim]``."""
        return self.split(self.norm_q(self.q(x)).to(x.dtype)).transpose(1, 2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Keys without rotary embedding, and values, ``[B, heads, tokens, head_dim]`` each."""
        keys = self.split(self.norm_k(self.k(x)).to(x.dtype)).transpose(1, 2)
        return keys, self.split(self.v(x)).transpose(1, 2)


class WanBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward; the first and the last modulated by the time projection."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.self_attn = WanAttention(config)
        self.cross_attn = WanAttention(config)
        self.norm3 = nn.LayerNorm(config.dim, config.eps)
        self.ffn = nn.Sequential(
            nn.Linear(config.dim, config.ffn_dim), nn.GELU("tanh"), nn.Linear(config.ffn_dim, config.dim)
        )
        self.modulation = nn.Parameter(torch.empty(1, 6, config.dim))
        self.eps = config.eps

    def forward(
        self,
        x: Tensor,
        e0: Tensor,
        table: Tensor,
        self_attention: Callable[[Tensor, Tensor, Tensor], Tensor],
        cross_attention: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """``x [B, F, S, dim]`` (S tokens per frame), ``e0 [B, F or 1, 6, dim]`` fp32."""
        dtype = x.dtype
        x = x.float()
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.modulation.float() + e0).unsqueeze(3).unbind(2)
        h = torch.addcmul(shift1, layer_norm(x, self.eps), 1 + scale1).to(dtype).flatten(1, 2)
        h = self.self_attn.o(self_attention(*self.self_attn.rotated(h, table)))
        x = torch.addcmul(x, h.view_as(x), gate1)
        h = F.layer_norm(x, x.shape[-1:], self.norm3.weight.float(), self.norm3.bias.float(), self.eps)
        h = self.cross_attn.o(cross_attention(self.cross_attn.queries(h.to(dtype).flatten(1, 2))))
        x = x + h.view_as(x)
        h = self.ffn(torch.addcmul(shift2, layer_norm(x, self.eps), 1 + scale2).to(dtype))
        return torch.addcmul(x, h.float(), gate2).to(dtype)


class WanHead(nn.Module):
    """Last norm, modulated by the time embedding itself, and the projection to patches; all fp32."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.head = Fp32Linear(config.dim, config.out_dim * math.prod(config.patch))
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim))
        self.eps = config.eps

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        shift, scale = (self.modulation.float() + e.unsqueeze(2)).unsqueeze(3).unbind(2)
        return self.head(torch.addcmul(shift, layer_norm(x.float(), self.eps), 1 + scale))


def layer_norm(x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=eps)
