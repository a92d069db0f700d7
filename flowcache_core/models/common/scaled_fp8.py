"""fp8 weights of a ComfyUI file back to floating point.

A linear layer ``L`` stored as ``L.weight`` (e4m3 or e5m2) and ``L.scale_weight`` (``L.weight_scale`` in newer files)
has the weight ``L.weight * scale``; an empty tensor ``scaled_fp8`` marks the file. Input scales serve fp8 products
only. Files of fp8 weights without any scale are plain casts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import require

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
MARKER = "scaled_fp8"
WEIGHT_SCALES = ("scale_weight", "weight_scale")
DROPPED = (*WEIGHT_SCALES, "scale_input", "input_scale", "comfy_quant")


def dequantised(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors without scales; fp8 ones in ``dtype``, everything else as it is.

    SettingError when a scale is neither one number nor one per output row, or when only some fp8 weights have one.
    """
    scaled = any(key.rpartition(".")[2] in (MARKER, *WEIGHT_SCALES) for key in tensors)
    result: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        layer, _, name = key.rpartition(".")
        if name in DROPPED or name == MARKER:
            continue
        if tensor.dtype not in FP8:
            result[key] = tensor
            continue
        places = [f"{layer}.{scale}" for scale in WEIGHT_SCALES if f"{layer}.{scale}" in tensors]
        accepted = f"{layer}.scale_weight beside it, as the file's others have"
        require(bool(places) == scaled, key, "fp8 without a scale", accepted)
        weight = tensor.float()
        if places:
            scale = tensors[places[0]].float()
            fits = scale.numel() in (1, weight.shape[0])
            require(fits, places[0], tuple(scale.shape), f"one number, or one for each of {weight.shape[0]} rows")
            weight = weight * scale.reshape(-1, *(1,) * (weight.dim() - 1))
        result[key] = weight.to(dtype)
    return result
