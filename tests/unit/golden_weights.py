"""Random weights of the MAGI golden data, drawn again from their seeds (provenance: tests/golden/README.md)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FIXED_STD = (  # everything else: 1 / sqrt(inputs) for matrices
    (("x_embedder", "t_embedder", "y_proj_"), 0.12),
    (("null_caption", "cls_token", "pos_embed"), 0.5),
    (("final_linear",), 0.05),
    (("decoder.last_layer.weight",), 0.06),
)


def draw(module: torch.nn.Module, seed: int, bias_std: float) -> dict[str, Tensor]:
    """State dict of ``module`` (in the order of its parameters), values exactly bf16, as fp32."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _tensor(name, torch.randn(parameter.shape, generator=generator), bias_std).bfloat16().float()
        for name, parameter in module.named_parameters()
    }


def _tensor(name: str, noise: Tensor, bias_std: float) -> Tensor:
    if name == "rope.bands":
        return 10000.0 ** (-torch.arange(len(noise)) / len(noise)) * (1 + 0.05 * noise)
    if name.endswith("bias"):
        return bias_std * noise
    if "norm" in name:  # stored as an offset from one, but for the plain pre-norms and the VAE's
        plain = "layer_norm" in name or name.startswith(("encoder", "decoder"))
        return float(plain) + 0.1 * noise
    std = next((std for parts, std in FIXED_STD if any(part in name for part in parts)), None)
    return noise * (1 / math.sqrt(noise[0].numel()) if std is None else std)
