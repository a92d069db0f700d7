"""The Wan 2.1 text-to-video transformer at any size, run whole or chunk by chunk.

Architecture: Wan 2.1 (https://github.com/Wan-Video/Wan2.1, arXiv 2503.20314); one timestep per latent frame and the
optional frame-rate embedding: SkyReels-V2 (arXiv 2504.13074). Parameter names and shapes are the official ones, so
official files and the bundled miniature load alike.

Precision follows the original: the time path, modulation, normalisation, rotary embedding and head are computed in
fp32; linear layers and attention in the dtype of the weights, to which the token stream returns after every block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import require, require_count
from ...rows import Rows
from ..common.attention import attend, attend_block_causal
from ..common.cached_attention import LayerAttention
from ..common.rope import RopeAxes
from ..common.token_share import TokenShare
from .config import WanConfig
from .layers import Fp32Linear, WanBlock, WanHead


@dataclass(frozen=True)
class PreparedText:
    """A prompt as the blocks see it: cross-attention K and V of every layer, ``[B, heads, T, head_dim]`` each."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


Text = Tensor | PreparedText
SelfAttention = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class WanTransformer(nn.Module):
    """Velocity (noise minus clean) of latents at given timesteps under a prompt.

    Timesteps run from 0 (clean) to 1000 (noise). Latents are ``[B, in_dim, F, H, W]`` with H and W multiples of the
    patch; a frame has ``H / 2 * W / 2`` tokens. ``fps`` counts only for models with a frame-rate embedding, which knows
    16 and everything else (24, the default).
    """

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        # Kept as a convolution for its key names and shape; computed as a product, see patch_tokens.
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, config.patch, config.patch)
        self.text_embedding = nn.Sequential(nn.Linear(config.text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(Fp32Linear(config.freq_dim, dim), nn.SiLU(), Fp32Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), Fp32Linear(dim, 6 * dim))
        if config.fps_embedding:
            self.fps_embedding = nn.Embedding.from_pretrained(torch.empty(2, dim), freeze=False)
            self.fps_projection = nn.Sequential(Fp32Linear(dim, dim), nn.SiLU(), Fp32Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(WanBlock(config) for _ in range(config.num_layers))
        self.head = WanHead(config)
        if not self.patch_embedding.weight.is_meta:  # a draw on meta fills nothing and costs seconds of imports
            self._init_weights()

    def _init_weights(self) -> None:
        """Wan's start for training: Xavier, no biases, and a head that says zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embedding.weight.flatten(1))
        nn.init.zeros_(cast(Tensor, self.patch_embedding.bias))
        for sequential in (self.text_embedding, self.time_embedding):
            for module in sequential:
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
        if self.config.fps_embedding:
            nn.init.normal_(self.fps_embedding.weight)
        for modulation in (*(block.modulation for block in self._blocks()), self.head.modulation):
            nn.init.normal_(modulation, std=self.config.dim**-0.5)
        nn.init.zeros_(self.head.head.weight)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, of K/V and of the token stream."""
        return self.patch_embedding.weight.dtype

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Text | Sequence[Text],
        *,
        first_frame: int = 0,
        chunk_frames: Sequence[int] | None = None,
        fps: int | None = None,
        rope: RopeAxes | None = None,
        share: TokenShare | None = None,
    ) -> Tensor:
        """Velocity ``[B, out_dim, F, H, W]`` (fp32) of a whole window in one pass.

        ``timesteps`` is ``[B]`` or ``[B, F]``; ``context`` the text encoder's ``[B, T, text_dim]`` or what
        :meth:`prepare_text` made of it. With ``chunk_frames`` (lengths that add up to F) a chunk sees itself and the
        chunks before it, and ``context`` may be a sequence with one prompt per chunk. Without, every frame sees every
        frame. ``rope``: :meth:`rope` of a stretch of video that has these frames; made for this call without.
        ``share``: the part of the tokens that goes through the blocks here. ``timesteps`` may have more rows than x:
        their first ones count, and are the same bits as in the larger batch.
        """
        tokens, frames = self.tokens_per_frame(x), x.shape[2]
        chunks = [frames] if chunk_frames is None else list(chunk_frames)
        ok = sum(chunks) == frames and min(chunks) > 0
        require(ok, "chunk_frames", chunks, f"lengths of at least 1 that add up to {frames}")
        lengths = [count * tokens for count in chunks]
        texts = [context] if isinstance(context, Tensor | PreparedText) else list(context)
        accepted = f"one prompt, or one for each of {len(chunks)} chunks"
        require(len(texts) in (1, len(chunks)), "context", len(texts), accepted)

        def self_attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend_block_causal(q, k, v, lengths)

        e, e0 = self._time(timesteps, fps, frames, x.shape[0])
        table = self._table(x, first_frame, rope)
        stream = self._stack(self._embed(x), e0, texts, lengths, table, self_attention, share)
        return self._head(stream, e, x)

    def forward_chunk(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Text,
        *,
        first_frame: int,
        attention: LayerAttention,
        fps: int | None = None,
        return_residual: bool = False,
        rope: RopeAxes | None = None,
        rows: Rows | None = None,
        share: TokenShare | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Velocity of one chunk ``x [B, C, f, H, W]`` whose first latent frame is frame ``first_frame`` of the video.

        ``attention``: every layer's self-attention, which remembers earlier chunks. With ``return_residual`` also
        returns what the block stack added to the tokens, ``[B, tokens, dim]``, for :meth:`from_residual`. ``rope``,
        ``share``, ``timesteps``: as in :meth:`forward`; with ``rope`` no values are copied to the device. ``rows``: run
        only these tokens through the blocks, each at its own place; velocity and residual mean something at their
        places only.
        """

        def self_attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention(layer, q, k, v).transpose(1, 2).flatten(2)

        e, e0 = self._time(timesteps, fps, x.shape[2], x.shape[0])
        tokens = self._embed(x)
        table = self._table(x, first_frame, rope)
        if rows is None:
            lengths = [tokens.shape[1] * tokens.shape[2]]
            stream = self._stack(tokens, e0, [context], lengths, table, self_attention, share)
        else:
            count = tokens.shape[1] * tokens.shape[2]
            require(rows.tokens == count, "rows", rows.grid, f"rows of {count} tokens")
            index = rows.on(x.device)
            part = tokens.flatten(1, 2)[:, index]
            if e0.shape[1] == 1:
                part = part.unsqueeze(1)
            else:  # a time of its own for every frame
                part, e0 = part.unsqueeze(2), e0[:, index // tokens.shape[2]]
            part = self._stack(part, e0, [context], [rows.count], table[index], self_attention, share)
            stream = tokens.flatten(1, 2).index_copy(1, index, part.flatten(1, 2)).view_as(tokens)
        velocity = self._head(stream, e, x)
        return (velocity, (stream - tokens).flatten(1, 2)) if return_residual else velocity

    def forward_joint(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Sequence[Text],
        chunk_frames: Sequence[int],
        *,
        first_frame: int,
        attention: LayerAttention,
        fps: int | None = None,
        rope: RopeAxes | None = None,
        share: TokenShare | None = None,
    ) -> Tensor:
        """Velocity of neighbouring chunks ``x [B, C, F, H, W]``, ``chunk_frames`` long, each at its own noise level and
        under its own prompt. ``timesteps [B, F]``; the rest as in :meth:`forward_chunk`.
        """

        def self_attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention(layer, q, k, v).transpose(1, 2).flatten(2)

        e, e0 = self._time(timesteps, fps, x.shape[2], x.shape[0])
        tokens = self.tokens_per_frame(x)
        same = all(text is context[0] for text in context)
        texts, lengths = (context[:1], [x.shape[2] * tokens]) if same else (context, [n * tokens for n in chunk_frames])
        table = self._table(x, first_frame, rope)
        return self._head(self._stack(self._embed(x), e0, texts, lengths, table, self_attention, share), e, x)

    def from_residual(self, x: Tensor, timesteps: Tensor, residual: Tensor, fps: int | None = None) -> Tensor:
        """Velocity as if the block stack had added ``residual [B, tokens, dim]`` again: embedding and head only."""
        tokens = self._embed(x)
        e, _ = self._time(timesteps, fps, x.shape[2], x.shape[0])
        return self._head(tokens + residual.view_as(tokens), e, x)

    def patch_tokens(self, x: Tensor) -> Tensor:
        """Tokens ``[B, F * H / 2 * W / 2, dim]`` after the patch embedding, in (frame, row, column) order."""
        return self._embed(x).flatten(1, 2)

    def time_modulation(self, timesteps: Tensor, fps: int | None = None) -> Tensor:
        """e0 ``[*timesteps.shape, 6, dim]`` in fp32: what modulates the blocks, the same for all tokens of a frame."""
        return self._time_embedding(timesteps, fps)[1]

    def prepare_text(self, context: Tensor) -> PreparedText:
        """Everything that depends on the prompt ``[B, T, text_dim]`` alone, to be computed once per run."""
        ok = context.dim() == 3 and context.shape[-1] == self.config.text_dim
        require(ok, "context", tuple(context.shape), f"[B, T, {self.config.text_dim}]")
        text = self.text_embedding(context.to(self.dtype))
        pairs = [block.cross_attn.keys_values(text) for block in self._blocks()]
        return PreparedText(tuple(k for k, _ in pairs), tuple(v for _, v in pairs))

    def tokens_per_frame(self, x: Tensor) -> int:
        """Tokens of one latent frame of ``x [B, in_dim, F, H, W]``; SettingError when x does not fit the model."""
        _, rows, columns = self.config.patch
        ok = x.dim() == 5 and x.shape[1] == self.config.in_dim and x.shape[3] % rows == x.shape[4] % columns == 0
        accepted = f"[B, {self.config.in_dim}, F, multiple of {rows}, multiple of {columns}]"
        require(ok, "latents", tuple(x.shape), accepted)
        return (x.shape[3] // rows) * (x.shape[4] // columns)

    def rope(self, x: Tensor, first_frame: int, frames: int) -> RopeAxes:
        """Rotations of ``frames`` latent frames from ``first_frame`` on, for x's height, width and device."""
        _, rows, columns = self.config.patch
        height, width = x.shape[3] // rows, x.shape[4] // columns
        return RopeAxes.of(first_frame, frames, height, width, self.config.head_dim, x.device)

    def _blocks(self) -> Iterator[WanBlock]:
        return cast("Iterator[WanBlock]", iter(self.blocks))

    def _embed(self, x: Tensor) -> Tensor:
        """``[B, F, tokens per frame, dim]``. A matrix product, since patches do not overlap: faster than conv3d."""
        self.tokens_per_frame(x)
        _, rows, columns = self.config.patch
        patches = x.to(self.dtype).unflatten(4, (-1, columns)).unflatten(3, (-1, rows)).permute(0, 2, 3, 5, 1, 4, 6)
        weight, bias = self.patch_embedding.weight.flatten(1), self.patch_embedding.bias
        return F.linear(patches.flatten(4).flatten(2, 3), weight, bias)

    def _time_embedding(self, timesteps: Tensor, fps: int | None) -> tuple[Tensor, Tensor]:
        """e ``[..., dim]`` and e0 ``[..., 6, dim]``, fp32."""
        narrow = timesteps.device.type == "mps"  # has no float64, in which no processor's rounding shows
        wide = torch.float32 if narrow else torch.float64
        half = self.config.freq_dim // 2
        exponents = torch.arange(half, dtype=torch.float64, device="cpu" if narrow else timesteps.device) / -half
        rates = (10000.0**exponents).to(wide).to(timesteps.device)
        angles = timesteps.to(wide).unsqueeze(-1) * rates
        e = self.time_embedding(torch.cat((angles.cos(), angles.sin()), -1).to(self.dtype))
        e0 = self.time_projection(e)
        if self.config.fps_embedding:
            e0 = e0 + self.fps_projection(self.fps_embedding.weight[0 if fps == 16 else 1])
        return e, e0.unflatten(-1, (6, -1))

    def _time(self, timesteps: Tensor, fps: int | None, frames: int, batch: int) -> tuple[Tensor, Tensor]:
        """e ``[B, F or 1, dim]`` and e0 ``[B, F or 1, 6, dim]`` for the first B = ``batch`` rows of timesteps, ``[B]``
        or ``[B, F]``. How many rows a product has may decide its last bits."""
        if timesteps.dim() == 1:
            timesteps = timesteps.unsqueeze(1)
        ok = timesteps.dim() == 2 and timesteps.shape[1] in (1, frames)
        require(ok, "timesteps", tuple(timesteps.shape), f"[B] or [B, {frames}]")
        e, e0 = self._time_embedding(timesteps, fps)
        return e[:batch], e0[:batch]

    def _table(self, x: Tensor, first_frame: int, rope: RopeAxes | None) -> Tensor:
        """Rotations of all of x's tokens."""
        require_count("first_frame", first_frame, minimum=0)
        return (rope or self.rope(x, first_frame, x.shape[2])).table(first_frame, x.shape[2])

    def _stack(
        self,
        stream: Tensor,
        e0: Tensor,
        texts: Sequence[Text],
        lengths: Sequence[int],
        table: Tensor,
        self_attention: SelfAttention,
        share: TokenShare | None,
    ) -> Tensor:
        """All blocks over ``stream [B, F, S, dim]``; one text for all tokens, or one for each of ``lengths``. With
        ``share`` its part of every frame, joined behind the last block."""
        runs, places = stream.shape[1:3]
        if share is not None:
            stream = share.take(stream, 2)
            table = share.take(table.unflatten(0, (runs, places)), 1).flatten(0, 1)
            lengths = [length // places * stream.shape[2] for length in lengths]
        prepared = [text if isinstance(text, PreparedText) else self.prepare_text(text) for text in texts]
        for layer, block in enumerate(self._blocks()):

            def own(q: Tensor, k: Tensor, v: Tensor, layer: int = layer) -> Tensor:
                if share is None:
                    return self_attention(layer, q, k, v)
                attended = self_attention(layer, *share.to_heads((q, k, v), (runs, places)))
                attended = attended.unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
                return share.to_tokens(attended, (runs, places)).transpose(1, 2).flatten(2)

            def cross(q: Tensor, layer: int = layer) -> Tensor:
                parts = q.split(list(lengths), 2) if len(prepared) > 1 else (q,)
                out = [attend(p, t.keys[layer], t.values[layer]) for p, t in zip(parts, prepared, strict=True)]
                return out[0] if len(out) == 1 else torch.cat(out, 1)

            stream = block(stream, e0, table, own, cross)
        return stream if share is None else share.join(stream, 2, places)

    def _head(self, stream: Tensor, e: Tensor, x: Tensor) -> Tensor:
        """Tokens ``[B, F, S, dim]`` to velocities shaped like ``x``."""
        _, rows, columns = self.config.patch
        patches = self.head(stream, e).unflatten(3, (rows, columns, -1)).unflatten(2, (-1, x.shape[4] // columns))
        return patches.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
