"""MAGI-1's quantised weights (``inference_weight.fp8.distill``) back to floating point.

What the public code of the model declares (its module definitions; the file itself could not be read here, so the key
names and shapes below are checked on loading and everything else is refused):

* The first and last block and everything outside the blocks are not quantised.
* ``linear_qkv.{q,qx,k,v}`` and ``mlp.linear_fc1``: ``weight [1, out, in]`` e4m3, ``weight_scale [1]``, ``input_scale
  [in]``. The input is divided by ``input_scale`` before it is rounded to fp8, the product multiplied by the first
  input scale and the weight scale.
* ``linear_proj`` and ``mlp.linear_fc2``: besides ``weight_scale [1]`` and ``input_scale [1]`` a ``smooth_scale [1,
  in]``, by which the input is divided instead.

The weights that give the same product without rounding the input are therefore ``W * weight_scale * input_scale / d``
with d the vector that the input is divided by. Also read: one scale per tensor as ComfyUI writes it (``scale_weight``;
``scale_input`` is not needed), and fp8 files without any scale.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import Found, require

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
SCALES = ("weight_scale", "input_scale", "smooth_scale", "scale_weight", "scale_input")
MARKER = "scaled_fp8"  # ComfyUI's: an empty tensor that says the file has scales


def dequantize(state_dict: Mapping[str, Tensor], dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """State dict without scales; fp8 weights become ``dtype``, everything else is passed on.

    SettingError when a scale has another shape than the module above, or when only some fp8 weights have one.
    """
    scaled = any(key.endswith(("weight_scale", "scale_weight")) for key in state_dict)
    result: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        module, _, name = key.rpartition(".")
        if key == MARKER:
            continue
        if name in SCALES:
            _require_weight(state_dict, key, module)
            continue
        if tensor.dtype not in FP8:
            result[key] = tensor
            continue
        weight = tensor.squeeze(0) if tensor.dim() == 3 and tensor.shape[0] == 1 else tensor
        scale = _scale(state_dict, module, weight) if name == "weight" else None
        accepted = "a scale for every fp8 weight, or for none"
        require(scale is not None or not scaled, key, "fp8 without weight_scale", accepted)
        result[key] = (weight.float() if scale is None else weight.float() * scale).to(dtype)
    return result


def _require_weight(state_dict: Mapping[str, Tensor], key: str, module: str) -> None:
    """SettingError for a scale that says nothing about an fp8 weight: it would be lost silently."""
    weight, scale = state_dict.get(f"{module}.weight"), state_dict[key]
    found = "a scale beside " + ("no weight" if weight is None else f"a weight of {weight.dtype}").replace("torch.", "")
    require(weight is not None and weight.dtype in FP8, key, Found(found), f"{module}.weight in fp8")
    main = any(f"{module}.{name}" in state_dict for name in ("weight_scale", "scale_weight"))
    require(main, key, Found("no weight_scale beside it"), f"{module}.weight_scale")
    floats = scale.dtype in (torch.float32, torch.float16, torch.bfloat16) and bool(scale.float().isfinite().all())
    require(floats, key, Found(f"a scale of {scale.dtype}, or one that is not finite"), "finite fp32, fp16 or bf16")


def _scale(state_dict: Mapping[str, Tensor], module: str, weight: Tensor) -> Tensor | None:
    """What a weight ``[out, in]`` is multiplied by: one number, or one per input column."""

    def scale(name: str, counts: tuple[int, ...]) -> Tensor | None:
        value = state_dict.get(f"{module}.{name}")
        if value is None:
            return None
        accepted = " or ".join(f"{count} value(s)" for count in counts)
        require(value.numel() in counts, f"{module}.{name}", tuple(value.shape), accepted)
        return value.float().flatten()

    columns = weight.shape[-1]
    one = scale("scale_weight", (1,))
    own = scale("weight_scale", (1,)) if one is None else one
    smooth, given = scale("smooth_scale", (columns,)), scale("input_scale", (1, columns))
    if own is None:
        return None
    if smooth is not None:
        require(given is not None, f"{module}.smooth_scale", "no input_scale beside it", "both")
        return own * given[0] / smooth if given is not None else own
    return own if given is None else own * given[0] / given
