"""Files of Wan 2.1's transformer, from disk to module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...errors import SettingError
from ..common.checkpoint import load_strict, read_state_dict
from ..common.scaled_fp8 import LISTED_FORMATS, dequantised, is_beside
from .config import WanConfig
from .keys import transformer_tensors
from .transformer import WanTransformer


def load_wan(path: str | Path, dtype: torch.dtype | None = None) -> WanTransformer:
    """Transformer with the weights of a .safetensors, .pt or .pth file, frozen and in eval mode, on the CPU.

    Keys may stand under a common prefix (``model.diffusion_model.``); fp8 weights are multiplied out. ``dtype``
    defaults to that of the file's attention weights, bf16 for fp8. SettingError when the file is damaged, runs code or
    holds another architecture.
    """
    tensors, metadata = read_state_dict(path)
    return wan_from_tensors(tensors, metadata, path, dtype)


def wan_from_tensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: str | Path, dtype: torch.dtype | None = None
) -> WanTransformer:
    """What :func:`load_wan` makes of a file's content. ``path`` is only named in errors."""
    field = f"checkpoint {Path(path).name}"
    state_dict = transformer_tensors(tensors, field)
    try:
        if LISTED_FORMATS in metadata or any(map(is_beside, state_dict)):
            state_dict = dequantised(state_dict, dtype or torch.bfloat16, metadata)
        config = WanConfig.from_state_dict(state_dict, metadata)
    except SettingError as error:
        raise SettingError(f"{field}: {error.field}", error.value, error.accepted) from error
    model = on_meta(config)
    load_strict(model, state_dict, path)
    model = model.to(dtype or state_dict["blocks.0.self_attn.q.weight"].dtype)
    return model.eval().requires_grad_(False)


def on_meta(config: WanConfig) -> WanTransformer:
    """The module without values: what weights are checked against."""
    with torch.device("meta"):
        return WanTransformer(config)
