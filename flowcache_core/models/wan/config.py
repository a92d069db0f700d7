"""Sizes of Wan 2.1's transformer, read off its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from ...errors import SettingError, require, require_count, require_finite
from ...fields import require_types
from ...reading.json_text import parse_object
from ...reading.limits import LAYERS, WIDEST
from ..common.layers import count_layers

HEAD_DIM = 128
# Keys that a "config" in a file's metadata may carry for its host and that change nothing here.
HOST_FLAGS = frozenset({"causal_ar", "image_model", "text_len"})
# ... and those that name a variant: only this value is this model.
VARIANT_FLAGS: Mapping[str, object] = {"model_type": "t2v", "qk_norm": True, "cross_attn_norm": True}


@dataclass(frozen=True)
class WanConfig:
    """Sizes of the transformer. Nothing but ``num_heads`` and ``eps`` is free once the weights are given."""

    dim: int
    ffn_dim: int
    num_layers: int
    num_heads: int
    in_dim: int = 16
    out_dim: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)
    fps_embedding: bool = False
    eps: float = 1e-6

    def __post_init__(self) -> None:
        require_types(self)
        for name in ("dim", "ffn_dim", "num_heads", "in_dim", "out_dim", "text_dim", "freq_dim"):
            require_count(name, getattr(self, name), minimum=1, maximum=WIDEST)
        require_count("num_layers", self.num_layers, minimum=1, maximum=LAYERS)
        require_finite("eps", self.eps, minimum=0)
        require(self.freq_dim % 2 == 0, "freq_dim", self.freq_dim, "an even number")
        fits = self.dim % self.num_heads == 0 and self.head_dim % 2 == 0
        require(fits, "num_heads", self.num_heads, f"a divisor of dim {self.dim} that leaves heads of even size")
        require(self.patch[0] == 1, "patch", self.patch, "one latent frame per token")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> WanConfig:
        """Read the sizes off a state dict with official key names.

        Heads have 128 dimensions unless ``metadata["config"]``, JSON ``{"transformer": {...}}``, gives ``num_heads``.
        Any other size in it must be that of the weights. SettingError when a key is absent or a value does not fit.
        """

        def shape(key: str, dims: int) -> tuple[int, ...]:
            require(key in state_dict, "state dict", f"no {key}", "the keys of a Wan 2.1 text-to-video transformer")
            size = tuple(state_dict[key].shape)
            require(len(size) == dims, key, size, f"{dims} dimensions")
            return size

        dim, in_dim, *patch = shape("patch_embedding.weight", 5)
        sizes: dict[str, Any] = {
            "dim": dim,
            "ffn_dim": shape("blocks.0.ffn.0.weight", 2)[0],
            "num_layers": count_layers(state_dict, "blocks."),
            "in_dim": in_dim,
            "out_dim": shape("head.head.weight", 2)[0] // math.prod(patch),
            "text_dim": shape("text_embedding.0.weight", 2)[1],
            "freq_dim": shape("time_embedding.0.weight", 2)[1],
            "patch": tuple(patch),
            "fps_embedding": "fps_embedding.weight" in state_dict,
        }
        overrides = _overrides(metadata, sizes)
        if "num_heads" not in overrides:
            accepted = f"a multiple of {HEAD_DIM}, or num_heads in the file's metadata: config.transformer.num_heads"
            require(dim % HEAD_DIM == 0, "dim", dim, accepted)
            overrides["num_heads"] = dim // HEAD_DIM
        return cls(**{**sizes, **overrides})


def _overrides(metadata: Mapping[str, str] | None, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """``num_heads`` and ``eps`` out of a file's metadata; everything else in there must agree with the weights."""
    text = (metadata or {}).get("config")
    if text is None:
        return {}
    form = 'JSON of the form {"transformer": {...}}'
    given = parse_object(text, "metadata config", form).get("transformer", {})
    if not isinstance(given, dict):
        raise SettingError("metadata config", text, form)
    overrides = {}
    for key, value in given.items():
        field = f"metadata config.transformer.{key}"
        if key in ("num_heads", "eps"):
            overrides[key] = value
        elif key in sizes:
            value = tuple(value) if isinstance(value, list) else value
            require(value == sizes[key], field, value, f"{sizes[key]!r}, as in the weights")
        elif key in VARIANT_FLAGS:
            require(value == VARIANT_FLAGS[key], field, value, repr(VARIANT_FLAGS[key]))
        elif key not in HOST_FLAGS:
            known = sorted({*(item.name for item in fields(WanConfig)), *VARIANT_FLAGS, *HOST_FLAGS})
            raise SettingError(field, value, f"one of the keys {', '.join(known)}")
    return overrides
