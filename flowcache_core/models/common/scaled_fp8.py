"""fp8 weights of a ComfyUI file back to floating point.

A linear layer ``L`` stored as ``L.weight`` (e4m3 or e5m2) and ``L.scale_weight`` (``L.weight_scale`` in newer files)
has the weight ``L.weight * scale``; an empty tensor ``scaled_fp8`` marks older files, ``L.comfy_quant`` or a list in
the metadata the layers of newer ones. Input scales serve fp8 products only. Files of fp8 weights without any scale are
plain casts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import Found, require
from ...reading.json_text import parse_object

FP8 = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}
MARKER = "scaled_fp8"
WEIGHT_SCALES = ("scale_weight", "weight_scale")
INPUT_SCALES = ("scale_input", "input_scale")
LAYER_FORMAT = "comfy_quant"
LISTED_FORMATS = "_quantization_metadata"
SCALE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FORMATS = " or ".join(FP8.values())


def dequantised(
    tensors: Mapping[str, Tensor], dtype: torch.dtype, metadata: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """Tensors without scales; fp8 ones in ``dtype``, everything else as it is.

    SettingError naming a scale that belongs to no fp8 weight, or is neither one number nor one per output row; naming
    fp8 weights without a scale where others have one; and layers in another packed format.
    """
    for layer, how in layer_formats(tensors, metadata or {}).items():
        require(how.get("format") in FP8.values(), f"{layer}.weight", Found(f"format {how.get('format')}"), FORMATS)
    scales = weight_scales(tensors)
    result: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if is_beside(key):
            continue
        if tensor.dtype not in FP8:
            result[key] = tensor
            continue
        weight = tensor.float()
        if key in scales:
            weight = weight * tensors[scales[key]].float().reshape(-1, *(1,) * (weight.dim() - 1))
        result[key] = weight.to(dtype)
    return result


def is_beside(key: str) -> bool:
    """Whether a tensor of this name only says how another one is to be read."""
    return key == MARKER or key.rpartition(".")[2] in (*WEIGHT_SCALES, *INPUT_SCALES, LAYER_FORMAT)


def weight_scales(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Key of an fp8 weight -> key of its scale. Empty for files of plain casts. SettingError as :func:`dequantised`."""
    found: dict[str, str] = {}
    for key, tensor in tensors.items():
        layer, _, name = key.rpartition(".")
        if name not in (*WEIGHT_SCALES, *INPUT_SCALES):
            continue
        weight = tensors.get(f"{layer}.weight")
        beside = weight is not None and weight.dtype in FP8
        what = f"a scale beside {'no weight' if weight is None else f'a weight of {weight.dtype}'}"
        require(beside, key, Found(what.replace("torch.", "")), f"{layer}.weight in fp8, which it belongs to")
        assert weight is not None
        require(tensor.dtype in SCALE_DTYPES, key, Found(f"a scale of {tensor.dtype}"), "fp32, fp16 or bf16")
        if name in INPUT_SCALES:
            continue
        rows = weight.shape[0] if weight.dim() else 1
        fits = tensor.numel() in (1, rows)
        require(fits, key, tuple(tensor.shape), f"one number, or one for each of {rows} rows")
        require(bool(tensor.float().isfinite().all()), key, Found("a scale that is not finite"), "finite numbers")
        require(f"{layer}.weight" not in found, key, Found("a second scale of one weight"), "one scale")
        found[f"{layer}.weight"] = key
    if found or MARKER in tensors:
        for key, tensor in tensors.items():
            accepted = f"{key.rpartition('.')[0]}.scale_weight beside it, as the file's others have"
            require(tensor.dtype not in FP8 or key in found or is_beside(key), key, "fp8 without a scale", accepted)
    return found


def layer_formats(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Layer -> how its weight is packed, as the file says; the longest end of a listed name that is a layer here.

    SettingError when that is not readable, or names a layer that the file does not have.
    """
    formats: dict[str, dict[str, Any]] = {}
    if LISTED_FORMATS in metadata:
        field = f"metadata {LISTED_FORMATS}"
        given: Any = parse_object(metadata[LISTED_FORMATS], field, "JSON").get("layers")
        fits = isinstance(given, dict) and all(isinstance(how, dict) for how in given.values())
        require(fits, field, given, 'JSON of the form {"layers": {"<name>": {"format": ...}}}')
        for name, how in given.items():
            layer = name
            while f"{layer}.weight" not in tensors and "." in layer:
                layer = layer.partition(".")[2]
            if f"{layer}.weight" in tensors:
                formats[layer] = how
    for key, tensor in tensors.items():
        layer, _, name = key.rpartition(".")
        if name == LAYER_FORMAT:
            require(tensor.dtype == torch.uint8, key, Found(f"{tensor.dtype}"), "JSON as bytes (uint8)")
            formats[layer] = parse_object(tensor.flatten().numpy().tobytes(), key, "JSON")
            require(f"{layer}.weight" in tensors, key, Found("no weight beside it"), f"{layer}.weight")
    return formats
