"""Layers whose weights follow their input: the namespace that a model is built from when no host brings its own.

A host's namespace (ComfyUI's ``comfy.ops.manual_cast`` and its relatives) keeps the same promise and adds its own:
weights streamed from the CPU, fp8 storage, patches. ``torch.nn`` serves as well where weights and inputs have one
dtype.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Operations(Protocol):
    """What a model takes from the namespace; constructors as in ``torch.nn``, with ``dtype`` and ``device``."""

    Linear: type[nn.Linear]
    Conv3d: type[nn.Conv3d]
    LayerNorm: type[nn.LayerNorm]


def _as(parameter: Tensor | None, like: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(like)


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x), _as(self.bias, x))


class _LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, _as(self.weight, x), _as(self.bias, x), self.eps)


class _PatchConv3d(nn.Conv3d):
    """Convolution of patches that do not overlap (stride = kernel): a product, as 3D convolutions are slow off CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        t, h, w = self.kernel_size
        patches = x.unflatten(4, (-1, w)).unflatten(3, (-1, h)).unflatten(2, (-1, t)).permute(0, 2, 4, 6, 1, 3, 5, 7)
        out = F.linear(patches.flatten(4), self.weight.to(x).flatten(1), _as(self.bias, x))
        return out.permute(0, 4, 1, 2, 3)


class CastingOperations:
    """Weights are cast to the dtype and device of the input, so one model may hold fp32 and bf16 layers."""

    Linear = _Linear
    LayerNorm = _LayerNorm
    Conv3d = _PatchConv3d


class LayerNorm1p(nn.Module):
    """Layer norm whose stored weight is an offset from one (Megatron's ``layernorm_1p``), in the input's dtype."""

    def __init__(
        self, size: int, eps: float, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(size, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(size, dtype=dtype, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight.to(x) + 1, self.bias.to(x), self.eps)
