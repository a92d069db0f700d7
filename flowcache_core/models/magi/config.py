"""Sizes of the MAGI-1 transformer, given or read off the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from ...errors import require, require_count
from ...fields import require_types
from ...reading.limits import LAYERS, WIDEST
from ..common.layers import count_layers

LATENT_CHANNELS = 16
# The released model with 32 input channels (24B) scales latents by this before, and velocities after; not in its
# weights.
HALF_CHANNEL_RESCALE = 0.1
BLOCKS = "videodit_blocks.layers."


@dataclass(frozen=True)
class MagiConfig:
    """Sizes of the transformer; all follow from the weights but ``x_rescale`` and ``eps``."""

    dim: int
    ffn_dim: int
    num_layers: int
    num_heads: int
    kv_heads: int
    head_dim: int
    cond_dim: int
    in_dim: int = 16
    text_dim: int = 4096
    text_len: int = 800
    freq_dim: int = 256
    bands: int = 16
    patch: tuple[int, int, int] = (1, 2, 2)
    gated: bool = False
    x_rescale: float = 1.0
    eps: float = 1e-6

    def __post_init__(self) -> None:
        require_types(self)
        counts = ("dim", "ffn_dim", "num_layers", "num_heads", "kv_heads", "head_dim", "cond_dim", "text_dim", "bands")
        for name in counts:
            require_count(name, getattr(self, name), minimum=1, maximum=LAYERS if name == "num_layers" else WIDEST)
        require_count("text_len", self.text_len, minimum=2, maximum=WIDEST)
        grouped = self.num_heads % self.kv_heads == 0
        require(grouped, "num_heads", self.num_heads, f"a multiple of {self.kv_heads} K/V heads")
        require(self.freq_dim % 2 == 0, "freq_dim", self.freq_dim, "an even number")
        require(6 * self.bands <= self.head_dim, "bands", self.bands, f"at most a sixth of head_dim {self.head_dim}")
        known = (LATENT_CHANNELS, 2 * LATENT_CHANNELS)
        require(self.in_dim in known, "in_dim", self.in_dim, "16, or 32 (half-channel VAE)")
        require(self.patch[0] == 1, "patch", self.patch, "one latent frame per token")
        require(self.x_rescale > 0, "x_rescale", self.x_rescale, "a number > 0")

    @property
    def half_channel(self) -> bool:
        """Latents of 16 channels are repeated to 32, and the first 16 of 32 output channels are the velocity."""
        return self.in_dim == 2 * LATENT_CHANNELS

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> MagiConfig:
        """Read the sizes off a state dict with official key names. SettingError when a key is absent or does not fit.

        ``x_rescale`` is not in the weights: 0.1 is assumed with 32 input channels (24B), 1 otherwise.
        """

        def shape(key: str, dims: int) -> tuple[int, ...]:
            require(key in state_dict, "state dict", f"no {key}", "the keys of a MAGI-1 transformer")
            size = tuple(state_dict[key].shape)
            require(len(size) == dims, key, size, f"{dims} dimensions")
            return size

        first = BLOCKS + "0."
        dim, in_dim, *patch = shape("x_embedder.weight", 5)
        (head_dim,) = shape(first + "self_attention.q_layernorm.weight", 1)
        require_count("head_dim", head_dim, minimum=1, maximum=WIDEST)
        ffn_dim = shape(first + "mlp.linear_fc2.weight", 2)[1]
        wide = shape(first + "mlp.linear_fc1.weight", 2)[0]
        accepted = f"{ffn_dim} rows (plain), or {2 * ffn_dim} (gated), as linear_fc2 has {ffn_dim} columns"
        require(wide in (ffn_dim, 2 * ffn_dim), first + "mlp.linear_fc1.weight", wide, accepted)
        text_len, text_dim = shape("y_embedder.null_caption_embedding", 2)
        cond_dim, freq_dim = shape("t_embedder.mlp.0.weight", 2)
        return cls(
            dim=dim,
            ffn_dim=ffn_dim,
            num_layers=count_layers(state_dict, BLOCKS),
            num_heads=shape(first + "self_attention.linear_qkv.q.weight", 2)[0] // head_dim,
            kv_heads=shape(first + "self_attention.linear_qkv.k.weight", 2)[0] // head_dim,
            head_dim=head_dim,
            cond_dim=cond_dim,
            in_dim=in_dim,
            text_dim=text_dim,
            text_len=text_len,
            freq_dim=freq_dim,
            bands=shape("rope.bands", 1)[0],
            patch=cast("tuple[int, int, int]", tuple(patch)),
            gated=wide == 2 * ffn_dim,
            x_rescale=HALF_CHANNEL_RESCALE if in_dim == 2 * LATENT_CHANNELS else 1.0,
        )


# Published configurations.
MAGI_4_5B = MagiConfig(3072, 12288, 34, 24, 8, 128, 768)
MAGI_24B = MagiConfig(6144, 16384, 48, 48, 8, 128, 1536, in_dim=32, gated=True, x_rescale=HALF_CHANNEL_RESCALE)
