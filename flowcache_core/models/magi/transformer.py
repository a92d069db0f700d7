"""The MAGI-1 transformer (arXiv 2505.13211), 4.5B and 24B layout: one chunk per call against the K/V of earlier chunks.

Parameter names and shapes are the official ones. Time runs from 0 (noise) to 1 (clean), and the velocity is clean minus
noise: ``x += velocity * dt`` (the sign is the reverse of the engine's; the adapter turns it).

Precision follows the original: embedders, rotary table, q/k norms, post norms, gates and head in fp32, the rest and the
token stream in the dtype of the weights. One departure: the attention's output projection multiplies in the stream's
dtype (kernels accumulate in fp32) where the original casts weights and input to fp32, which is slow on a GPU and only
changes how the result is rounded. In fp32 the two are the same.

Verified against the public code by the values in ``tests/golden`` for the plain layout. For the 24B layout (SwiGLU, 32
channels of which the second 16 repeat the first, ``x_rescale``) shapes and settings come from the published config and
code; no output of it could be compared.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...background import sent
from ...errors import SettingError, listed, require, require_count
from ...rows import Rows
from ..common.cached_attention import LayerAttention
from ..common.checkpoint import load_strict, require_fit
from ..common.operations import CastingOperations, LayerNorm1p, Operations
from ..common.sharded import read_weights
from ..common.token_share import TokenShare
from .config import BLOCKS, LATENT_CHANNELS, MagiConfig
from .fp8 import dequantize
from .layers import AttentionKernel, CaptionEmbedder, MagiBlock, Rope, TimeEmbedder, rope_table

CaptionRows = list[Tensor]


class Blocks(nn.Module):
    """The block stack and the norm behind it."""

    def __init__(self, config: MagiConfig, ops: Operations, weights: dict[str, Any], island: dict[str, Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MagiBlock(config, ops, weights, island) for _ in range(config.num_layers))
        self.final_layernorm = LayerNorm1p(config.dim, config.eps, **island)


class FinalLinear(nn.Module):
    """Tokens to patches, fp32."""

    def __init__(self, dim: int, out: int, ops: Operations, island: dict[str, Any]) -> None:
        super().__init__()
        self.linear = ops.Linear(dim, out, bias=False, **island)


class MagiTransformer(nn.Module):
    """Velocity of one chunk of latents ``[B, 16, f, H, W]`` (H and W even; ``H / 2 * W / 2`` tokens per latent frame).

    operations: namespace with Linear, LayerNorm and Conv3d, as in :mod:`.operations`. dtype, device: of the weights,
    but for the fp32 parts. compute_dtype: of the token stream, when it is not that of the weights (fp8 storage in a
    host).
    """

    def __init__(
        self,
        config: MagiConfig,
        *,
        operations: Operations | Any = CastingOperations,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config, self.compute_dtype = config, compute_dtype
        weights: dict[str, Any] = {"dtype": dtype, "device": device}
        island: dict[str, Any] = {"dtype": torch.float32, "device": device}
        patch_dim = config.in_dim * config.patch[1] * config.patch[2]
        self.x_embedder = operations.Conv3d(
            config.in_dim, config.dim, config.patch, stride=config.patch, bias=False, **island
        )
        self.t_embedder = TimeEmbedder(config, operations, island)
        self.y_embedder = CaptionEmbedder(config, operations, island)
        self.rope = Rope(config.bands, island)
        self.videodit_blocks = Blocks(config, operations, weights, island)
        self.final_linear = FinalLinear(config.dim, patch_dim, operations, island)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the token stream and of K/V."""
        return self.compute_dtype or self._layers()[0].self_attention.linear_qkv.q.weight.dtype

    def forward_chunk(
        self,
        x: Tensor,
        t: Tensor,
        caption: Tensor | CaptionRows,
        caption_mask: Tensor | None = None,
        *,
        first_frame: int,
        attention: LayerAttention,
        dropped: bool = False,
        step_time: float | None = None,
        return_residual: bool = False,
        kernel: AttentionKernel = F.scaled_dot_product_attention,
        rows: Rows | None = None,
        share: TokenShare | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Velocity ``[B, 16, f, H, W]`` (fp32) of a chunk whose first latent frame is frame ``first_frame`` of the
        video.

        t: ``[B]``. caption: ``[B, n, text_dim]`` from T5, or batch 1 for all; rows where ``caption_mask [B, n]`` is 0
        are not seen, and a caption without rows is allowed; or what :meth:`caption_rows` made of them, once for many
        calls. dropped: condition on the null caption (guidance branches
        without text). step_time: what distilled weights are told about their steps
        (:func:`...schedule.magi_distill_times`).

        ``attention``: every layer's self-attention, which remembers earlier chunks. kernel: computes the attention to
        the caption. With ``return_residual`` also what the blocks added to the tokens ``[B, tokens, dim]``. rows: run
        these tokens only, each at its own place; velocity and residual mean something at their places only. share: the
        part of the tokens that goes through the blocks here.
        """
        require_count("first_frame", first_frame, minimum=0)
        tokens = self.patch_tokens(x)
        _, down, across = self.config.patch
        table = rope_table(
            self.rope.bands.to(x.device), first_frame, x.shape[2], x.shape[3] // down, x.shape[4] // across
        )
        condition = self.condition(t, dropped=dropped, step_time=step_time).to(self.dtype)
        if isinstance(caption, Tensor):
            mask = caption.new_ones(caption.shape[:2]) if caption_mask is None else caption_mask
            caption = self.caption_rows(caption, mask, x.shape[0])
        stream = tokens
        if rows is not None:
            require(rows.tokens == tokens.shape[1], "rows", rows.grid, f"rows of {tokens.shape[1]} tokens")
            places = rows.on(x.device)
            stream, table = tokens[:, places], (table[0][places], table[1][places])
        grid = (1, stream.shape[1])
        if share is not None:
            stream, table = share.take(stream, 1), (share.take(table[0], 0), share.take(table[1], 0))
        for index, layer in enumerate(self._layers()):

            def own(q: Tensor, k: Tensor, v: Tensor, index: int = index) -> Tensor:
                if share is None:
                    return attention(index, q, k, v)
                return share.to_tokens(attention(index, *share.to_heads((q, k, v), grid)), grid)

            stream = layer(stream, condition, table, own, caption, kernel)
        if share is not None:
            stream = share.join(stream, 1, grid[1])
        if rows is not None:
            stream = tokens.index_copy(1, places, stream)
        velocity = self._head(stream, x)
        return (velocity, stream - tokens) if return_residual else velocity

    def from_residual(self, x: Tensor, residual: Tensor) -> Tensor:
        """Velocity as if the blocks had added ``residual [B, tokens, dim]`` again: embedding and head only."""
        return self._head(self.patch_tokens(x) + residual, x)

    def patch_tokens(self, x: Tensor) -> Tensor:
        """Tokens ``[B, tokens, dim]`` before any block, in the dtype of the stream: the reuse distance's input."""
        self.tokens_per_frame(x)
        x = x.float() * self.config.x_rescale
        if self.config.half_channel:
            x = torch.cat((x, x), 1)
        return self.x_embedder(x).flatten(2).transpose(1, 2).to(self.dtype)

    def condition(self, t: Tensor, *, dropped: bool = False, step_time: float | None = None) -> Tensor:
        """adaLN input ``[B, cond_dim]`` (fp32) at times ``t [B]``: time, step size, one of two null rows, no prompt."""
        row = self.y_embedder.null_caption_embedding[-1 if dropped else -2].to(t.device, torch.float32)
        condition = self.t_embedder(t, self.dtype) + self.y_embedder.y_proj_adaln(row)
        if step_time is not None:
            condition = condition + self.t_embedder(torch.full_like(t, step_time), self.dtype)
        return condition

    def tokens_per_frame(self, x: Tensor) -> int:
        """Tokens of one latent frame of ``x [B, 16, f, H, W]``; SettingError when x does not fit the model."""
        _, rows, columns = self.config.patch
        ok = x.dim() == 5 and x.shape[1] == LATENT_CHANNELS and x.shape[3] % rows == x.shape[4] % columns == 0
        accepted = f"[B, {LATENT_CHANNELS}, f, multiple of {rows}, multiple of {columns}]"
        require(ok, "latents", tuple(x.shape), accepted)
        return (x.shape[3] // rows) * (x.shape[4] // columns)

    def _layers(self) -> list[MagiBlock]:
        return cast("list[MagiBlock]", list(self.videodit_blocks.layers))

    def caption_rows(self, caption: Tensor, mask: Tensor, batch: int) -> CaptionRows:
        """Unmasked cross-attention states ``[n_i, dim]`` of each batch item, or one list entry for all of them.

        caption: ``[batch or 1, n, text_dim]``. mask: ``[batch or 1, n]``, best on the CPU: how many rows it leaves is
        asked where it lies. SettingError when they do not fit the model.
        """
        ok = caption.dim() == 3 and caption.shape[-1] == self.config.text_dim and caption.shape[0] in (1, batch)
        require(ok, "caption", tuple(caption.shape), f"[{batch} or 1, n, {self.config.text_dim}]")
        require(mask.shape == caption.shape[:2], "caption mask", tuple(mask.shape), f"{tuple(caption.shape[:2])}")
        seen = [sent(keep.nonzero().flatten(), caption.device) for keep in mask]
        return [
            self.y_embedder.y_proj_xattn(rows[index].float()).to(self.dtype)
            for rows, index in zip(caption, seen, strict=True)
        ]

    def _head(self, stream: Tensor, x: Tensor) -> Tensor:
        """Tokens to velocities shaped like ``x``; a patch's values are ordered row, column, channel."""
        _, rows, columns = self.config.patch
        out = self.final_linear.linear(self.videodit_blocks.final_layernorm(stream.float()))
        grid = (x.shape[2], x.shape[3] // rows, x.shape[4] // columns)
        patches = out.unflatten(2, (rows, columns, -1)).unflatten(1, grid)
        velocity = patches.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
        return velocity[:, :LATENT_CHANNELS] / self.config.x_rescale


def read_magi(path: str | Path) -> tuple[MagiConfig, dict[str, Tensor]]:
    """Sizes and weights under official names, on the CPU, fp8 multiplied out.

    path: a weight file, an index, a folder with ``model.safetensors`` or its shards and index, or a folder that holds
    one ``inference_weight*`` folder. SettingError for missing shards, damage, or another architecture.
    """
    tensors = read_weights(path)
    name = f"checkpoint {Path(path).name}"
    anchors = ("x_embedder.weight", "rope.bands")
    prefixes = [key[: -len(anchors[0])] for key in tensors if key == anchors[0] or key.endswith("." + anchors[0])]
    prefix = min(prefixes, key=len, default="")
    missing = [anchor for anchor in anchors if prefix + anchor not in tensors]
    accepted = "a MAGI-1 transformer under official key names"
    require(not missing, name, f"no {' and no '.join(missing)} in it", accepted)
    others = [key for key in tensors if not key.startswith(prefix)]
    if others:
        logging.getLogger(__name__).warning("%s: tensors of other models, not read: %s", name, listed(others))
    own = {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    try:
        state_dict = dequantize(own)
        return MagiConfig.from_state_dict(state_dict), state_dict
    except SettingError as error:
        raise SettingError(f"{name}: {error.field}", error.value, error.accepted) from error


def fill_magi(model: MagiTransformer, state_dict: dict[str, Tensor], path: str | Path) -> None:
    """Make these weights the model's, each in the dtype that the model has there; it may be on the meta device."""
    wanted = dict(model.named_parameters())
    require_fit(wanted, state_dict, path, type(model).__name__)  # before any cast: to floats, anything would fit
    load_strict(model, {key: tensor.to(wanted[key].dtype) for key, tensor in state_dict.items()}, path)
    model.eval().requires_grad_(False)


def load_magi(path: str | Path, dtype: torch.dtype | None = None) -> MagiTransformer:
    """Transformer with official weights, frozen and in eval mode, on the CPU.

    path: as in :func:`read_magi`. fp8 files become ``dtype``, which defaults to that of the attention weights (bf16 for
    fp8); the parts computed in fp32 are kept in it.
    """
    config, state_dict = read_magi(path)
    with torch.device("meta"):
        model = MagiTransformer(config, dtype=dtype or attention_dtype(state_dict))
    fill_magi(model, state_dict, path)
    return model


def attention_dtype(state_dict: dict[str, Tensor]) -> torch.dtype:
    """What most weights of a state dict are in."""
    return state_dict[BLOCKS + "0.self_attention.linear_qkv.q.weight"].dtype
