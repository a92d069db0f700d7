"""All chunks of a clip in one forward: what training needs where sampling takes one chunk at a time."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.magi.layers import MagiAttention, MagiBlock, apply_rope, rope_table
from ..models.magi.transformer import MagiTransformer


def forward_clip(
    model: MagiTransformer, x: Tensor, t: Tensor, text: Tensor, *, null: Tensor, dropped: Tensor, alone: Tensor
) -> Tensor:
    """Velocities ``[B, 16, F, H, W]`` (fp32) of C chunks of equal length, each at a time of its own.

    The same as :meth:`MagiTransformer.forward_chunk` on one chunk after the other, every chunk attending to what the
    layers make of itself and of the chunks before it, at the times they have here.

    t: ``[B, C]``. text: ``[B, n, text_dim]``, which the null caption stands in for where ``null [B, C]``. dropped:
    ``[B, C]``, as there. alone: ``[B]``, rows whose chunks see themselves only.
    """
    batch, chunks = t.shape
    frames = x.shape[2]
    per_chunk = frames // chunks * model.tokens_per_frame(x)
    _, rows, columns = model.config.patch
    table = rope_table(model.rope.bands, 0, frames, x.shape[3] // rows, x.shape[4] // columns)
    condition = torch.where(
        dropped.flatten()[:, None],
        model.condition(t.flatten(), dropped=True),
        model.condition(t.flatten()),
    ).unflatten(0, (batch, chunks))
    project = model.y_embedder.y_proj_xattn
    captions = torch.cat(
        (project(text), project(model.y_embedder.null_caption_embedding[None]).expand(batch, -1, -1)), 1
    )
    behind_text = torch.arange(captions.shape[1], device=x.device) >= text.shape[1]
    reads = (null[:, :, None] == behind_text).repeat_interleave(per_chunk, 1)[:, None]
    chunk = torch.arange(chunks, device=x.device).repeat_interleave(per_chunk)
    earlier, own = chunk[:, None] >= chunk, chunk[:, None] == chunk
    sees = torch.where(alone[:, None, None], own, earlier)[:, None]
    stream = tokens = model.patch_tokens(x)
    for layer in cast("list[MagiBlock]", list(model.videodit_blocks.layers)):
        gates = layer.ada_modulate_layer.proj(F.silu(condition)).tanh().repeat_interleave(per_chunk, 1)
        gate_attention, gate_mlp = gates.chunk(2, -1)
        h = _attend(layer.self_attention, stream, table, sees, captions, reads)
        stream = stream + layer.self_attn_post_norm(gate_attention * h)
        stream = stream + layer.mlp_post_norm(gate_mlp * layer.mlp(stream))
    return model.from_residual(x, stream - tokens)


def _attend(
    attention: MagiAttention,
    x: Tensor,
    table: tuple[Tensor, Tensor],
    sees: Tensor,
    captions: Tensor,
    reads: Tensor,
) -> Tensor:
    """:meth:`MagiAttention.forward` under masks ``sees [B, 1, tokens, tokens]`` and ``reads [B, 1, tokens, n]``."""
    project, split = attention.linear_qkv, attention.split
    h = project.layer_norm(x)
    q = apply_rope(attention.q_layernorm(split(project.q(h))), table)
    k = apply_rope(attention.k_layernorm(split(project.k(h))), table)
    own = _grouped(q, k, split(project.v(h)), sees)
    keys, values = zip(*(attention.caption_states(rows) for rows in captions), strict=True)
    cross = _grouped(attention.q_layernorm_xattn(split(project.qx(h))), torch.cat(keys), torch.cat(values), reads)
    # As the model lays it out: of each group its heads' self-attention, then its heads' cross-attention.
    return attention.linear_proj(torch.cat((own, cross), 2).permute(0, 3, 1, 2, 4).flatten(2))


def _grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """``[B, kv_heads, heads / kv_heads, tokens, head_dim]``."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).unflatten(1, (-1, group))
