"""The parts of the MAGI-1 transformer: rotary table, embedders, attention, feed-forward, one block.

Parameter names are the official ones (https://github.com/SandAI-org/MAGI-1). Token order is (frame, row, column); heads
are laid out ``[B, heads, tokens, head_dim]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.operations import LayerNorm1p, Operations
from .config import MagiConfig

AttentionKernel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Attention without a mask, q and k and v ``[B, heads, tokens, head_dim]``: torch's, or that of a host."""


def rope_table(bands: Tensor, first_frame: int, frames: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[tokens, 3 * bands]`` (fp32) of learned ``bands [n]``; angles ordered time, row, column.

    Time counts latent frames of the whole video. Rows and columns are centred and stretched to the grid of the same
    shape that has 256 tokens, so every resolution spans the same range.
    """
    bands = bands.float()
    scale = math.sqrt(rows * columns / 256)

    def centred(count: int) -> Tensor:
        index = torch.arange(count, dtype=torch.float32, device=bands.device) - (count - 1) / 2
        return index / max(count - 1, 1) * (count / scale - 1)

    time = torch.arange(first_frame, first_frame + frames, dtype=torch.float32, device=bands.device)
    grids = torch.meshgrid(time, centred(rows), centred(columns), indexing="ij")
    angles = torch.cat([grid.flatten()[:, None] * bands for grid in grids], -1)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn dimension i of fp32 ``x [B, heads, tokens, head_dim]`` with dimension i + n, n the table's angles.

    Dimensions from 2n on stay as they are (32 of 128 in the released models).
    """
    cos, sin = table
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos - second * sin, first * sin + second * cos, rest), -1)


def attend_grouped(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel: AttentionKernel = F.scaled_dot_product_attention,
    bias: Tensor | None = None,
) -> Tensor:
    """Grouped-query attention without a mask; returns q's shape ``[B, heads, tokens, head_dim]``.

    Query head i uses K/V head ``i // group``. The heads of a group are laid end to end as one head's queries, so
    neither K nor V is expanded and every attention kernel serves. K/V of batch 1 serve all of q's batch; no keys give
    zeros. bias: added to the logits of the keys ``[B, heads of k, tokens of k]``; torch computes it then, no kernel.
    """
    batch, heads, tokens, size = q.shape
    kv_heads = k.shape[1]
    q = q.reshape(batch, kv_heads, heads // kv_heads * tokens, size)
    if k.shape[2] == 0:
        return q.new_zeros(batch, heads, tokens, size)
    k, v = k.expand(batch, -1, -1, -1), v.expand(batch, -1, -1, -1)
    if bias is not None:
        mask = bias.unsqueeze(-2).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).reshape(batch, heads, tokens, size)
    return kernel(q, k, v).reshape(batch, heads, tokens, size)


def time_rates(count: int, device: torch.device | str = "cpu") -> Tensor:
    """``[count]`` from 1 down to almost 1/10000, fp32, the same bits on every machine.

    The exponent is rounded to fp32 as in the original, its exp taken in float64: in fp32 the last bit of an exp depends
    on the processor, and angles of up to 32000 (a distilled step size) carry it into the velocity's fourth digit.
    """
    wide = "cpu" if torch.device(device).type == "mps" else device  # where there is float64
    exponents = -math.log(10000.0) * torch.arange(count, dtype=torch.float32, device=wide) / count
    return exponents.double().exp().float().to(device)


def sinusoid(t: Tensor, size: int) -> Tensor:
    """``[B, size]`` fp32: cosines, then sines, of ``1000 t`` times :func:`time_rates`."""
    rates = time_rates(size // 2, t.device)
    # Times 1000 last, as the original rounds.
    angles = t.float()[:, None] * rates * 1000
    return torch.cat((angles.cos(), angles.sin()), -1)


class TimeEmbedder(nn.Module):
    """``t [B]`` to ``[B, cond_dim]``, fp32 but for the sinusoid, which was trained at the precision of the stream."""

    def __init__(self, config: MagiConfig, ops: Operations, island: dict[str, Any]) -> None:
        super().__init__()
        self.freq_dim = config.freq_dim
        first = ops.Linear(config.freq_dim, config.cond_dim, **island)
        self.mlp = nn.Sequential(first, nn.SiLU(), ops.Linear(config.cond_dim, config.cond_dim, **island))

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        return self.mlp(sinusoid(t, self.freq_dim).to(dtype).float())


class CaptionEmbedder(nn.Module):
    """Text to cross-attention states, the learned null caption, and its last two rows to the adaLN condition; fp32."""

    def __init__(self, config: MagiConfig, ops: Operations, island: dict[str, Any]) -> None:
        super().__init__()
        self.y_proj_xattn = nn.Sequential(ops.Linear(config.text_dim, config.dim, **island), nn.SiLU())
        self.y_proj_adaln = nn.Sequential(ops.Linear(config.text_dim, config.cond_dim, **island))
        self.null_caption_embedding = nn.Parameter(torch.zeros(config.text_len, config.text_dim, **island))


class Rope(nn.Module):
    """Holder of the learned bands, started at ``10000 ** (-i / n)``."""

    def __init__(self, bands: int, island: dict[str, Any]) -> None:
        super().__init__()
        # Not torch.tensor(..., device=): newer torch cannot make one of those without values.
        self.bands = nn.Parameter(torch.empty(bands, **island))
        if not self.bands.is_meta:
            with torch.no_grad():
                self.bands.copy_(torch.tensor([10000.0 ** (-i / bands) for i in range(bands)], device="cpu"))


class Modulation(nn.Module):
    """The two gates of a block, ``[B, 1, dim]`` each in (-1, 1): ``tanh(W SiLU(c) + b)``."""

    def __init__(self, config: MagiConfig, ops: Operations, weights: dict[str, Any]) -> None:
        super().__init__()
        self.proj = nn.Sequential(ops.Linear(config.cond_dim, 2 * config.dim, **weights))

    def forward(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        gates = self.proj(F.silu(condition)).float().tanh().unsqueeze(1)
        return gates.chunk(2, -1)


class Projections(nn.Module):
    """Pre-norm and the four projections that read it: q, qx (query of the cross attention), k, v."""

    def __init__(self, config: MagiConfig, ops: Operations, weights: dict[str, Any]) -> None:
        super().__init__()
        dim, q_dim, kv_dim = config.dim, config.num_heads * config.head_dim, config.kv_heads * config.head_dim
        self.layer_norm = ops.LayerNorm(dim, eps=config.eps, **weights)
        self.q = ops.Linear(dim, q_dim, bias=False, **weights)
        self.qx = ops.Linear(dim, q_dim, bias=False, **weights)
        self.k = ops.Linear(dim, kv_dim, bias=False, **weights)
        self.v = ops.Linear(dim, kv_dim, bias=False, **weights)


class MagiAttention(nn.Module):
    """Self-attention against the memory and cross-attention to the caption, side by side, one output projection."""

    def __init__(self, config: MagiConfig, ops: Operations, weights: dict[str, Any], island: dict[str, Any]) -> None:
        super().__init__()
        dim, head_dim, eps = config.dim, config.head_dim, config.eps
        self.head_dim = head_dim
        self.linear_qkv = Projections(config, ops, weights)
        self.linear_kv_xattn = ops.Linear(dim, 2 * config.kv_heads * head_dim, bias=False, **weights)
        self.linear_proj = ops.Linear(2 * config.num_heads * head_dim, dim, bias=False, **weights)
        self.q_layernorm = LayerNorm1p(head_dim, eps, **island)
        self.q_layernorm_xattn = LayerNorm1p(head_dim, eps, **weights)
        self.k_layernorm = LayerNorm1p(head_dim, eps, **island)
        self.k_layernorm_xattn = LayerNorm1p(head_dim, eps, **weights)

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def caption_states(self, caption: Tensor) -> tuple[Tensor, Tensor]:
        """K and V ``[1, kv_heads, n, head_dim]`` of one caption's unmasked states ``[n, dim]``."""
        pairs = self.linear_kv_xattn(caption[None]).unflatten(-1, (-1, 2 * self.head_dim)).transpose(1, 2)
        keys, values = pairs.chunk(2, -1)
        return self.k_layernorm_xattn(keys), values

    def forward(
        self,
        x: Tensor,
        table: tuple[Tensor, Tensor],
        self_attention: Callable[[Tensor, Tensor, Tensor], Tensor],
        captions: Sequence[Tensor],
        kernel: AttentionKernel = F.scaled_dot_product_attention,
    ) -> Tensor:
        """``x [B, tokens, dim]``; ``captions``: unmasked states ``[n_i, dim]`` of each batch item, or of all."""
        project, dtype = self.linear_qkv, x.dtype
        h = project.layer_norm(x)
        q = apply_rope(self.q_layernorm(self.split(project.q(h)).float()), table).to(dtype)
        k = apply_rope(self.k_layernorm(self.split(project.k(h)).float()), table).to(dtype)
        own = self_attention(q, k, self.split(project.v(h)))
        queries = self.q_layernorm_xattn(self.split(project.qx(h)))
        parts = queries.split(1) if len(captions) > 1 else (queries,)
        cross = torch.cat(
            [
                attend_grouped(part, *self.caption_states(rows), kernel)
                for part, rows in zip(parts, captions, strict=True)
            ]
        )
        # Of each group: its heads' self-attention, then its heads' cross-attention.
        parts = [part.unflatten(1, (k.shape[1], -1)) for part in (own, cross)]
        grouped = torch.cat(parts, 2).permute(0, 3, 1, 2, 4)
        return self.linear_proj(grouped.flatten(2))


class MagiMLP(nn.Module):
    """Pre-norm and feed-forward: exact GELU, or SwiGLU with the gate in the first half of ``linear_fc1``."""

    def __init__(self, config: MagiConfig, ops: Operations, weights: dict[str, Any]) -> None:
        super().__init__()
        self.gated = config.gated
        self.layer_norm = ops.LayerNorm(config.dim, eps=config.eps, **weights)
        rows = config.ffn_dim * (2 if config.gated else 1)
        self.linear_fc1 = ops.Linear(config.dim, rows, bias=False, **weights)
        self.linear_fc2 = ops.Linear(config.ffn_dim, config.dim, bias=False, **weights)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear_fc1(self.layer_norm(x))
        if self.gated:
            gate, h = h.chunk(2, -1)
            h = F.silu(gate) * h
        else:
            h = F.gelu(h)
        return self.linear_fc2(h)


class MagiBlock(nn.Module):
    """Attention and feed-forward, each gated, normalised and added: ``x + norm(gate * f(x))``, the sum in fp32."""

    def __init__(self, config: MagiConfig, ops: Operations, weights: dict[str, Any], island: dict[str, Any]) -> None:
        super().__init__()
        self.ada_modulate_layer = Modulation(config, ops, weights)
        self.self_attention = MagiAttention(config, ops, weights, island)
        self.self_attn_post_norm = LayerNorm1p(config.dim, config.eps, **island)
        self.mlp = MagiMLP(config, ops, weights)
        self.mlp_post_norm = LayerNorm1p(config.dim, config.eps, **island)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        table: tuple[Tensor, Tensor],
        self_attention: Callable[[Tensor, Tensor, Tensor], Tensor],
        captions: Sequence[Tensor],
        kernel: AttentionKernel = F.scaled_dot_product_attention,
    ) -> Tensor:
        """``x [B, tokens, dim]`` and ``condition [B, cond_dim]`` in the dtype of the stream."""
        gate_attention, gate_mlp = self.ada_modulate_layer(condition)
        h = self.self_attention(x, table, self_attention, captions, kernel).float()
        x = (x.float() + self.self_attn_post_norm(gate_attention * h)).to(x.dtype)
        h = self.mlp(x).float()
        return (x.float() + self.mlp_post_norm(gate_mlp * h)).to(x.dtype)
