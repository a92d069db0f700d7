"""Tiny random MAGI-1 files in the layouts of the official ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hostkit import module
from safetensors.torch import save_file
from torch import Tensor

magi = module("flowcache_core.models.magi.transformer")
magi_vae = module("flowcache_core.models.magi.vae")
MagiConfig = module("flowcache_core.models.magi.config").MagiConfig
TEXT_DIM = 20
CONFIG = MagiConfig(48, 40, 3, 6, 2, 8, 12, text_dim=TEXT_DIM, text_len=60, freq_dim=16, bands=1)
VAE_CONFIG = {"video_size": 32, "video_length": 8, "embed_dim": 256, "depth": 1, "num_heads": 4, "mlp_ratio": 0.5}
FP8 = torch.float8_e4m3fn
QUANTISED = ("linear_qkv.q", "linear_qkv.qx", "linear_qkv.k", "linear_qkv.v", "mlp.linear_fc1")


def weights(text_dim: int = TEXT_DIM) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    state = magi.MagiTransformer(replace(CONFIG, text_dim=text_dim)).state_dict()
    return {key: 0.3 * torch.randn(value.shape, generator=draw) for key, value in state.items()}


def fp8_weights() -> dict[str, Tensor]:
    """As the distilled fp8 folder holds them: the middle block's projections quantised, with their scales."""
    found = {}
    for key, value in weights().items():
        layer = key.removesuffix(".weight")
        if ".layers.1." in key and layer.endswith(QUANTISED):
            scale = value.abs().max() / 448
            found[key] = (value / scale).to(FP8)[None]
            found[f"{layer}.weight_scale"] = scale.reshape(1)
            found[f"{layer}.input_scale"] = torch.full((value.shape[1],), 0.05)
        else:
            found[key] = value
    return found


def write_sharded(folder: Path, tensors: dict[str, Tensor]) -> None:
    """An official folder: index and two shards."""
    folder.mkdir(parents=True)
    names = sorted(tensors)
    parts = {"00001": names[::2], "00002": names[1::2]}
    files = {number: f"model-{number}-of-00002.safetensors" for number in parts}
    for number, keys in parts.items():
        save_file({key: tensors[key].contiguous() for key in keys}, folder / files[number])
    places = {key: files[number] for number, keys in parts.items() for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def vae() -> Any:
    model = magi_vae.MagiVAE(magi_vae.MagiVAEConfig(**VAE_CONFIG))
    draw = torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.02
        parameter.data = scale * torch.randn(parameter.shape, generator=draw)
    return model.eval().requires_grad_(False)


def write_vae(folder: Path) -> None:
    folder.mkdir(parents=True)
    save_file(vae().state_dict(), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "ViTVAE", "ddconfig": VAE_CONFIG}))


def write_table(path: Path, dim: int = TEXT_DIM, others: int = 100) -> None:
    draw = np.random.default_rng(6)
    sizes = {"caption_token": 1, "logo_token": 1, "other_tokens": others}
    np.savez(path, **{name: draw.standard_normal((count, dim)).astype(np.float16) for name, count in sizes.items()})
