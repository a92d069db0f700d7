"""Quantised files in the form in which this host's layers read them: nothing of a file may be lost on the way.

The host takes a scale only where a marker or its own list says so, and drops the others with a line in the log; e5m2
weights of older files it takes for e4m3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from comfy.quant_ops import QUANT_ALGOS, get_layout_class
from torch import Tensor

from ....flowcache_core.models.common.scaled_fp8 import (
    FP8,
    INPUT_SCALES,
    LAYER_FORMAT,
    LISTED_FORMATS,
    MARKER,
    dequantised,
    is_beside,
    layer_formats,
    weight_scales,
)

SLOW_PRODUCT = "full_precision_matrix_mult"
"""The host's word for multiplying in 16 bits: the input is not rounded to fp8."""
DTYPE = torch.bfloat16


def host_form(weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Weights and metadata where every linear fp8 weight with a scale is ``weight``, ``weight_scale``, ``comfy_quant``.

    Other scaled weights (convolutions, one scale per row) are multiplied out. Layers in the host's other formats stay
    as they are. SettingError naming a scale that belongs to nothing, as the core's loader raises it.
    """
    formats = layer_formats(weights, metadata)
    packed = {layer for layer, how in formats.items() if how.get("format") not in FP8.values()}
    own = {key: tensor for key, tensor in weights.items() if layer_of(key) not in packed}
    result = {key: tensor for key, tensor in weights.items() if layer_of(key) in packed}
    result |= {f"{layer}.{LAYER_FORMAT}": as_bytes(formats[layer]) for layer in packed}
    scales = weight_scales(own)
    marker = weights.get(MARKER)
    for key, tensor in own.items():
        if is_beside(key):
            continue
        layer, scale = layer_of(key), own.get(scales.get(key, ""))
        if scale is None:
            result[key] = tensor
        elif tensor.dim() == 2 and scale.numel() == 1:
            how = {SLOW_PRODUCT: marker is None or marker.numel() == 2, **formats.get(layer, {})}
            result |= {key: tensor, f"{layer}.weight_scale": scale.float().reshape(())}
            result[f"{layer}.{LAYER_FORMAT}"] = as_bytes({**how, "format": FP8[tensor.dtype]})
            result |= input_scale(own, layer)
        else:
            result |= dequantised({key: tensor, scales[key]: scale}, DTYPE)
    return result, {key: text for key, text in metadata.items() if key != LISTED_FORMATS}


def packed_layers(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Layers that are in one of the host's formats other than fp8 with one scale: the shape of the weight that each
    stands for. Several values may lie in one byte (NVFP4: two).
    """
    formats = {layer: how.get("format") for layer, how in layer_formats(weights, {}).items()}
    packed = {layer: form for layer, form in formats.items() if form not in FP8.values()}
    return {layer: whole_shape(weights[f"{layer}.weight"], form) for layer, form in packed.items()}


def whole_shape(stored: Tensor, form: object) -> tuple[int, ...]:
    """Of the weight that the host unpacks from ``stored``; the stored shape in formats that it says nothing of."""
    known = QUANT_ALGOS.get(form) if isinstance(form, str) else None
    layout = None if known is None else get_layout_class(known["comfy_tensor_layout"])
    shape = tuple(stored.shape)
    unpacked = getattr(layout, "get_logical_shape_from_storage", None)
    return tuple(unpacked(shape)) if unpacked is not None and len(shape) == 2 else shape


def layer_of(key: str) -> str:
    return key.rpartition(".")[0]


def input_scale(weights: Mapping[str, Tensor], layer: str) -> dict[str, Tensor]:
    """The scale of a layer's input for fp8 products, under the host's name; 1 stands for none."""
    found = next((weights[f"{layer}.{name}"] for name in INPUT_SCALES if f"{layer}.{name}" in weights), None)
    if found is None or found.numel() != 1 or float(found) == 1:
        return {}
    return {f"{layer}.input_scale": found.float().reshape(())}


def as_bytes(how: Mapping[str, Any]) -> Tensor:
    return torch.tensor(list(json.dumps(how).encode()), dtype=torch.uint8)
