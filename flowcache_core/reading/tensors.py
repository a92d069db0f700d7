"""What a tensor from outside may be: strided numbers on the CPU that take no more room than their file."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import Found, require
from .limits import DIMENSIONS, TENSOR_NAME, TENSORS

LARGEST_SIDE = 2**31 - 1


def require_names(names: Collection[object], field: str) -> None:
    """SettingError for too many tensors, or a name that is no text or too long."""
    require(len(names) <= TENSORS, field, Found(f"{len(names)} tensors"), f"at most {TENSORS} tensors")
    for name in names:
        fits = isinstance(name, str) and 0 < len(name) <= TENSOR_NAME
        require(fits, f"{field}, name of a tensor", name, f"a text of at most {TENSOR_NAME} characters")


def require_shape(field: str, shape: Any) -> tuple[int, ...]:
    """A shape as a file states it, as a tuple; SettingError when it is none or beyond what torch can count."""
    fits = isinstance(shape, list | tuple) and len(shape) <= DIMENSIONS
    fits = fits and all(type(side) is int and 0 <= side <= LARGEST_SIDE for side in shape)
    require(fits and math.prod(shape) < 2**48, field, shape, f"up to {DIMENSIONS} sizes from 0 to {LARGEST_SIDE}")
    return tuple(shape)


def require_plain(tensors: Mapping[str, Tensor], field: str) -> None:
    """SettingError unless every tensor holds its own numbers: no meta, sparse, quantised or expanded ones."""
    require_names(tensors, field)
    for key, tensor in tensors.items():
        require(isinstance(tensor, Tensor), f"{field}, {key}", Found(f"a {type(tensor).__name__}"), "a tensor")
        require(not tensor.is_meta, f"{field}, {key}", Found("a tensor without data (meta)"), "a tensor with its data")
        plain = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_nested
        layout = f"a {str(tensor.layout).removeprefix('torch.')} tensor"
        require(plain, f"{field}, {key}", Found(layout), "a dense tensor that is not packed")
        expanded = tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes()
        require(not expanded, f"{field}, {key}", Found("a tensor larger than its data (expanded)"), "its whole data")
