"""The MAGI-1 autoencoder: transformers on patches of 4 frames x 8 x 8 pixels (arXiv 2505.13211), whole or in tiles.

Pixels are ``[B, 3, F, H, W]`` in [-1, 1], latents ``[B, 16, F / 4, H / 8, W / 8]``. The diffusion model works on
latents times :data:`LATENT_SCALE`; nothing here applies it.

Sizes are read from the ``config.json`` that lies beside the weights. That file itself could not be seen: the names
in it are those of the public code, and the released values (width 1024, 24 layers, 16 heads) are not assumed anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import SettingError, require, require_count, require_finite
from ...reading.json_text import read_object
from ...reading.limits import LAYERS, WIDEST
from ...reading.regular_file import is_folder
from ..common.checkpoint import load_strict
from ..common.sharded import read_weights
from ..common.tiles import run_tiled

LATENT_SCALE = 0.18215
STD_OFFSET = 1e-5
# What the public code can vary and the released model does not: only these values are this model.
FIXED: Mapping[str, object] = {
    "in_chans": 3,
    "double_z": True,
    "with_cls_token": True,
    "norm_code": False,
    "ln_in_attn": True,
    "conv_last_layer": True,
    "use_rope": False,
    "use_final_proj": False,
    "qk_scale": None,
}
TRAINING_ONLY = frozenset({"drop_rate", "attn_drop_rate", "drop_path_rate"})


@dataclass(frozen=True)
class MagiVAEConfig:
    """Sizes of encoder and decoder. video_size, video_length: pixels and frames that the position tables are for."""

    video_size: int = 256
    video_length: int = 16
    patch_size: int = 8
    patch_length: int = 4
    z_chans: int = 16
    embed_dim: int = 1024
    depth: int = 24
    num_heads: int = 16
    mlp_ratio: float = 4.0
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.type == "int":
                most = LAYERS if field.name == "depth" else WIDEST
                require_count(field.name, getattr(self, field.name), minimum=1, maximum=most)
        require_finite("mlp_ratio", self.mlp_ratio, minimum=0.01, maximum=64)
        require(isinstance(self.qkv_bias, bool), "qkv_bias", self.qkv_bias, "true or false")
        require(self.embed_dim % self.num_heads == 0, "num_heads", self.num_heads, f"a divisor of {self.embed_dim}")
        volume = self.patch_length * self.patch_size**2
        require(self.embed_dim % volume == 0, "embed_dim", self.embed_dim, f"a multiple of the patch's {volume} pixels")

    @property
    def table_grid(self) -> tuple[int, int, int]:
        side = self.video_size // self.patch_size
        return self.video_length // self.patch_length, side, side

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> MagiVAEConfig:
        """From the content of ``config.json``: sizes at the top level, under ``ddconfig`` or ``encoder_config``.

        SettingError when it is another autoencoder, or a variant that was never released.
        """
        kind = given.get("_class_name", "ViTVAE")
        require(kind == "ViTVAE", "config.json _class_name", kind, "ViTVAE")
        require(given.get("model_type", "vit") == "vit", "config.json model_type", given.get("model_type"), "vit")
        sizes = given.get("encoder_config", given.get("ddconfig", given))
        require(isinstance(sizes, Mapping), "config.json encoder_config", sizes, "an object")
        decoder = given.get("decoder_config")
        require(decoder in (None, sizes), "config.json decoder_config", decoder, "the same as encoder_config, or null")
        known = {field.name for field in fields(cls)}
        chosen = {}
        for key, value in sizes.items():
            if key in known:
                chosen[key] = value
            elif key in FIXED:
                require(value == FIXED[key], f"config.json {key}", value, repr(FIXED[key]))
            elif not key.startswith("_") and key not in TRAINING_ONLY and sizes is not given:
                raise SettingError(f"config.json {key}", value, f"one of {', '.join(sorted({*known, *FIXED}))}")
        missing = sorted(name for name in ("embed_dim", "depth", "num_heads") if name not in chosen)
        require(not missing, "config.json", f"no {', '.join(missing)}", "the sizes of a ViTVAE")
        return cls(**chosen)


@dataclass(frozen=True)
class Tiling:
    """Tiles in pixels and frames. ``overlap``: the share of a tile that its neighbour in the frame covers too."""

    pixels: int = 256
    overlap: float = 0.25
    frames: int = 12

    def __post_init__(self) -> None:
        require_count("tile pixels", self.pixels, minimum=1)
        require_count("tile frames", self.frames, minimum=1)
        require_finite("tile overlap", self.overlap, minimum=0, maximum=0.5)


class VAEAttention(nn.Module):
    """Self-attention over all tokens; queries, keys and values are standardised per head."""

    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).float()
        std = parts.std(-1, keepdim=True, correction=0)
        q, k, v = ((parts - parts.mean(-1, keepdim=True)) / (std + STD_OFFSET)).to(x.dtype).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VAEMLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class VAEBlock(nn.Module):
    """No norm before the attention, layer norm before the feed-forward."""

    def __init__(self, config: MagiVAEConfig) -> None:
        super().__init__()
        self.attn = VAEAttention(config.embed_dim, config.num_heads, config.qkv_bias)
        self.norm2 = nn.LayerNorm(config.embed_dim)
        self.mlp = VAEMLP(config.embed_dim, int(config.embed_dim * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, config: MagiVAEConfig) -> None:
        super().__init__()
        patch = (config.patch_length, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(3, config.embed_dim, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class TokenStack(nn.Module):
    """Class token, learned positions, blocks and the last norm: what encoder and decoder have in common."""

    def __init__(self, config: MagiVAEConfig) -> None:
        super().__init__()
        self.grid = config.table_grid
        tokens = self.grid[0] * self.grid[1] * self.grid[2]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens + 1, config.embed_dim))

    def positions(self, grid: tuple[int, int, int]) -> Tensor:
        """``[1, 1 + tokens, dim]`` for a grid of (frames, rows, columns); the class token's row is not resized."""
        if grid == self.grid:
            return self.pos_embed
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        volume = rest.transpose(1, 2).unflatten(2, self.grid).float()
        resized = F.interpolate(volume, grid, mode="trilinear", align_corners=False)
        return torch.cat((first, resized.flatten(2).transpose(1, 2).to(first.dtype)), 1)

    def run(self, tokens: Tensor, grid: tuple[int, int, int], blocks: nn.ModuleList, norm: nn.LayerNorm) -> Tensor:
        """``[B, tokens, dim]`` without the class token."""
        x = torch.cat((self.cls_token.expand(tokens.shape[0], -1, -1), tokens), 1) + self.positions(grid)
        for block in blocks:
            x = block(x)
        return norm(x)[:, 1:]


class MagiEncoder(TokenStack):
    def __init__(self, config: MagiVAEConfig) -> None:
        super().__init__(config)
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(VAEBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim)
        self.last_layer = nn.Linear(config.embed_dim, 2 * config.z_chans)

    def forward(self, x: Tensor) -> Tensor:
        """Moments ``[B, 2 * 16, f, h, w]``: means, then log variances."""
        patches = self.patch_embed(x)
        grid = cast("tuple[int, int, int]", tuple(patches.shape[2:]))
        out = self.last_layer(self.run(patches.flatten(2).transpose(1, 2), grid, self.blocks, self.norm))
        return out.transpose(1, 2).unflatten(2, grid)


class MagiDecoder(TokenStack):
    def __init__(self, config: MagiVAEConfig) -> None:
        super().__init__(config)
        self.patch = (config.patch_length, config.patch_size, config.patch_size)
        self.proj_in = nn.Linear(config.z_chans, config.embed_dim)
        self.blocks = nn.ModuleList(VAEBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim)
        channels = config.embed_dim // (config.patch_length * config.patch_size**2)
        self.last_layer = nn.Conv3d(channels, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        grid = cast("tuple[int, int, int]", tuple(z.shape[2:]))
        x = self.run(self.proj_in(z.flatten(2).transpose(1, 2)), grid, self.blocks, self.norm)
        x = x.unflatten(2, (-1, *self.patch)).unflatten(1, grid)  # B f h w C pf ph pw
        x = x.permute(0, 4, 1, 5, 2, 6, 3, 7).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return self.last_layer(x)


class MagiVAE(nn.Module):
    """Encoder and decoder, official parameter names. Runs in the dtype of its weights; results are fp32."""

    def __init__(self, config: MagiVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = MagiEncoder(config)
        self.decoder = MagiDecoder(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.cls_token.dtype

    def moments(self, video: Tensor) -> Tensor:
        """Means and log variances ``[B, 32, F / 4, H / 8, W / 8]`` of ``video [B, 3, F, H, W]``."""
        length, size = self.config.patch_length, self.config.patch_size
        ok = video.dim() == 5 and video.shape[1] == 3 and min(video.shape) > 0
        ok = ok and video.shape[2] % length == 0 and video.shape[3] % size == video.shape[4] % size == 0
        accepted = f"[B, 3, 1 or a multiple of {length}, multiple of {size}, multiple of {size}]"
        require(ok, "video", tuple(video.shape), accepted)
        return self.encoder(video.to(self.dtype)).float()

    def encode(self, video: Tensor, tiling: Tiling | None = None) -> Tensor:
        """Latents (the mode) of a video, or one latent frame of a single image, ``[B, 16, f, h, w]``."""
        if video.dim() == 5 and video.shape[2] == 1:
            return self.encode(video.expand(-1, -1, self.config.patch_length, -1, -1), tiling)[:, :, :1]
        if tiling is None:
            return self.moments(video)[:, : self.config.z_chans]
        tile, stride, length = self._tile_latents(tiling)
        size, ratio = self.config.patch_size, Fraction(1, self.config.patch_size)
        parts = [
            run_tiled(part, self.encode, tile=tile * size, stride=stride * size, ratio=ratio, chained=True)
            for part in video.split(length * self.config.patch_length, 2)
        ]
        return torch.cat(parts, 2)

    def decode(self, latents: Tensor, tiling: Tiling | None = None) -> Tensor:
        """Video ``[B, 3, 4 f, 8 h, 8 w]`` of latents ``[B, 16, f, h, w]``; a single latent frame is one image."""
        frames = self._decode(latents) if tiling is None else torch.cat(list(self.decode_parts(latents, tiling)), 2)
        return frames[:, :, :1] if latents.shape[2] == 1 else frames

    def decode_parts(self, latents: Tensor, tiling: Tiling) -> Iterator[Tensor]:
        """The video in runs of ``tiling.frames`` frames, each as soon as it is decoded; they do not depend on each
        other.

        A chunk whose latent frames are a multiple of a run's may therefore be decoded when it ends, before the next
        exists. Every run has 4 frames per latent frame, a run of one included (the original returns one frame there).
        """
        tile, stride, length = self._tile_latents(tiling)
        ratio = Fraction(self.config.patch_size)
        for part in latents.split(length, 2):
            yield run_tiled(part, self._decode, tile=tile, stride=stride, ratio=ratio, chained=False)

    def _tile_latents(self, tiling: Tiling) -> tuple[int, int, int]:
        """Tile and stride in latent rows or columns, and latent frames of a run."""
        size, length = self.config.patch_size, self.config.patch_length
        accepted = f"a multiple of {size}, at least {2 * size}"
        require(tiling.pixels % size == 0 and tiling.pixels >= 2 * size, "tile pixels", tiling.pixels, accepted)
        require(tiling.frames % length == 0, "tile frames", tiling.frames, f"a multiple of {length}")
        tile = tiling.pixels // size
        return tile, int(tile * (1 - tiling.overlap)), tiling.frames // length

    def _decode(self, latents: Tensor) -> Tensor:
        ok = latents.dim() == 5 and latents.shape[1] == self.config.z_chans and min(latents.shape) > 0
        require(ok, "latents", tuple(latents.shape), f"[B, {self.config.z_chans}, f, h, w]")
        return self.decoder(latents.to(self.dtype)).float()


def load_magi_vae(path: str | Path, dtype: torch.dtype | None = None) -> MagiVAE:
    """Autoencoder from a folder with ``config.json`` and weights, or the weight file beside it; frozen, in eval mode.

    ``dtype`` defaults to that of the weights. SettingError when a file is missing, damaged or of another architecture.
    """
    path = Path(path)
    config_path = (path if is_folder(path) else path.parent) / "config.json"
    config = MagiVAEConfig.from_dict(
        read_object(config_path, "MAGI-1 VAE config.json", "a config.json beside the VAE's weights, in JSON")
    )
    state_dict = read_weights(path)
    with torch.device("meta"):
        model = MagiVAE(config)
    load_strict(model, state_dict, path)
    return model.to(dtype or model.dtype).eval().requires_grad_(False)
