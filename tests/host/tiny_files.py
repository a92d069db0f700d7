"""Tiny random checkpoints under the names that the templates ask for, with the layouts of the real files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import comfy.ops
import tiny_magi
import torch
from comfy.ldm.wan.ar_model import CausalWanModel
from comfy_server import ROOT
from safetensors.torch import save_file
from torch import Tensor

DIM = 128
"""One head: what the host infers for a file that does not say more."""
MINI_VAE = ROOT / "flowcache_core" / "mini" / "weights" / "flowcache_mini_vae.safetensors"


def wan_weights(seed: int = 0, channels: int = 16) -> dict[str, Tensor]:
    """Two layers of a text-to-video model that takes 4096-wide text, random but of sound scale."""
    model = CausalWanModel(
        model_type="t2v", dim=DIM, ffn_dim=2 * DIM, num_layers=2, num_heads=1, in_dim=channels, out_dim=channels,
        operations=comfy.ops.disable_weight_init, device="cpu", dtype=torch.float32,
    )  # fmt: skip
    return filled({key: value.shape for key, value in model.state_dict().items()}, seed)


def filled(shapes: dict[str, torch.Size], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in shapes.items():
        if len(shape) >= 2:
            weights[key] = torch.randn(shape, generator=generator) / shape[1:].numel() ** 0.5
        elif "norm" in key and key.endswith("weight"):
            weights[key] = torch.ones(shape)
        else:
            weights[key] = torch.randn(shape, generator=generator) * 0.02
    return weights


def frame_rate_weights() -> dict[str, Tensor]:
    """What SkyReels-V2 has beside Wan's."""
    shapes = {
        "fps_embedding.weight": (2, DIM),
        "fps_projection.0.weight": (DIM, DIM),
        "fps_projection.0.bias": (DIM,),
        "fps_projection.2.weight": (6 * DIM, DIM),
        "fps_projection.2.bias": (6 * DIM,),
    }
    return filled({key: torch.Size(shape) for key, shape in shapes.items()}, seed=1)


def write_models(folder: Path) -> None:
    """All files into a models folder: one as ComfyUI repackages them, one as its trainer saved it, one by others."""
    diffusion, weights = folder / "diffusion_models", wan_weights()
    tagged = {"config": json.dumps({"transformer": {"causal_ar": True}})}
    save_file(weights, diffusion / "causal_forcing-framewise.safetensors", metadata=tagged)
    trained = {f"model.{key}": value for key, value in weights.items()}
    torch.save({"generator_ema": trained}, diffusion / "self_forcing_dmd.pt")
    for name in ("rewardforcing.pt", "framewise-2step.pt", "longvideo.pt"):
        torch.save({"generator_ema": trained}, diffusion / name)
    torch.save({"generator": trained}, diffusion / "model.pt")
    save_file(weights, diffusion / "krea-realtime-video-14b.safetensors")
    large = {f"model.{key}": value for key, value in wan_weights(channels=48).items()}
    torch.save({"generator": large}, diffusion / "model_bf16.pt")
    (folder / "vae" / "wan2.2_vae.safetensors").symlink_to(MINI_VAE)  # only named: nothing is encoded with it
    name = "Wan2_1-SkyReels-V2-DF-1_3B-540P_fp32.safetensors"
    save_file({**weights, **frame_rate_weights()}, diffusion / name)
    shutil.copyfile(MINI_VAE, folder / "vae" / "wan_2.1_vae.safetensors")
    distilled = diffusion / "4.5B_distill" / "inference_weight.distill"
    tiny_magi.write_sharded(distilled, tiny_magi.weights(text_dim=4096))
    tiny_magi.write_vae(folder / "vae" / "magi")
