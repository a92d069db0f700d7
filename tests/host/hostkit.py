"""Tiny models of the host's own classes, and one call that samples like a workflow does."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import comfy.ops
import comfy.sd
import torch
from comfy.ldm.wan.ar_model import CausalWanModel
from comfy_extras.nodes_ar_video import EmptyARVideoLatent, SamplerARVideo
from comfy_extras.nodes_custom_sampler import (
    BasicGuider,
    BasicScheduler,
    CFGGuider,
    RandomNoise,
    SamplerCustomAdvanced,
)
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from torch import Tensor

PACK = sys.modules["flowcache_pack"]
TEXT_DIM = 64
SHAPE = {"text_dim": TEXT_DIM, "freq_dim": 16, "num_heads": 2}
# Two heads of 12 = 4 + 4 + 4 rotary dimensions, the fewest that give time, height and width their own.
DIM, LAYERS, FFN = 24, 2, 48
WIDTH, HEIGHT, LENGTH = 64, 32, 21
BLOCKWISE = {"plan": "blockwise", "chunk_frames": 3, "solver": "renoise", "clean_pass": True}
STAGGERED = {
    "plan": "diffusion forcing",
    "chunk_frames": 2,
    "ar_step": 2,
    "solver": "euler",
    "clean_pass": False,
    "attention": "block-causal",
    "window_frames": 0,
    "overlap_frames": 2,
    "prefix_noise": 0.0,
}


CUSTOM = {
    "preset": "custom",
    "policy": "chunkwise",
    "threshold": 0.0,
    "warmup_steps": 1,
    "distance": "latent",
    "quantity": "velocity",
    "max_reuses": 0,
    "always_last": True,
    "cache_device": "same as the model",
    "computed_steps": "0",
}
METHOD = {
    "method": "importance-redundancy",
    "mix_lambda": 0.07,
    "pool_kernel": 7,
    "key_granularity": "token",
    "query_granularity": "token",
}
SAME = "same as the model"


def module(name: str) -> Any:
    """A module of the pack by its dotted name below the root."""
    import importlib

    return importlib.import_module(f"{PACK.__name__}.{name}")


def _nodes() -> dict[str, Any]:
    extension = asyncio.run(PACK.comfy_entrypoint())
    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(extension.get_node_list())}


NODES = _nodes()


def node(name: str, **inputs: Any) -> Any:
    """First output of one of the pack's nodes."""
    return NODES[f"FlowCache{name}"].execute(**inputs).args[0]


def state_dict(seed: int = 0, layers: int = LAYERS, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Weights of a tiny causal Wan model. The host's own layers leave theirs uninitialised, so every one is filled."""
    model = CausalWanModel(
        model_type="t2v",
        dim=DIM,
        ffn_dim=FFN,
        num_layers=layers,
        in_dim=16,
        out_dim=16,
        operations=comfy.ops.disable_weight_init,
        device="cpu",
        dtype=torch.float32,
        **SHAPE,
    )
    generator = torch.Generator().manual_seed(seed)
    filled = {}
    for key, value in model.state_dict().items():
        if value.ndim >= 2:
            filled[key] = torch.randn(value.shape, generator=generator) / value[0].numel() ** 0.5
        elif "norm" in key and key.endswith("weight"):
            filled[key] = torch.ones_like(value)
        else:
            filled[key] = torch.randn(value.shape, generator=generator) * 0.02
    return {key: value.to(dtype) for key, value in filled.items()}


def metadata(causal: bool = True) -> dict[str, str]:
    return {"config": json.dumps({"transformer": {**SHAPE, **({"causal_ar": True} if causal else {})}})}


def load(weights: dict[str, Tensor] | None = None, *, causal: bool = True, shift: float = 5.0, **options: Any) -> Any:
    """A MODEL as the host's loader and ModelSamplingSD3 make it."""
    weights = dict(state_dict() if weights is None else weights)
    model = comfy.sd.load_diffusion_model_state_dict(weights, model_options=options, metadata=metadata(causal))
    return ModelSamplingSD3().patch(model, shift)[0]


def prompt(seed: int = 7, tokens: int = 2) -> list[Any]:
    return [[torch.randn(1, tokens, TEXT_DIM, generator=torch.Generator().manual_seed(seed)), {}]]


def reuse(model, **fields):
    return node("ChunkwiseReuse", model=model, preset={**CUSTOM, **fields})


def compress(model, budget, **fields):
    return node("KVCompressor", model=model, budget=budget, method={**METHOD, **fields}, dtype=SAME, device=SAME)


def latent(length: int = LENGTH, batch: int = 1, width: int = WIDTH, height: int = HEIGHT) -> dict[str, Tensor]:
    return EmptyARVideoLatent.execute(width, height, length, batch).args[0]


def ours(plan: dict[str, Any] | None = None, **inputs: Any) -> Any:
    return node("ARSampler", plan=plan or BLOCKWISE, **inputs)


def hosts(block: int = 3) -> Any:
    return SamplerARVideo.execute(block).args[0]


def sigmas_of(model: Any, steps: int = 4) -> Tensor:
    return BasicScheduler.execute(model, "simple", steps, 1.0).args[0]


@torch.inference_mode()
def sample(
    model: Any,
    sampler: Any = None,
    *,
    positive: Any = None,
    negative: Any = None,
    cfg: float = 3.0,
    start: Any = None,
    sigmas: Tensor | None = None,
    seed: int = 1,
    noise: Any = None,
) -> tuple[Tensor, Tensor]:
    """``output`` and ``denoised_output`` of SamplerCustomAdvanced; CFG as soon as there is a negative prompt."""
    positive = prompt() if positive is None else positive
    if negative is None:
        guider = BasicGuider.execute(model, positive).args[0]
    else:
        guider = CFGGuider.execute(model, positive, negative, cfg).args[0]
    sigmas = sigmas_of(model) if sigmas is None else sigmas
    noise = noise or RandomNoise.execute(seed).args[0]
    sampler = ours() if sampler is None else sampler
    out, denoised = SamplerCustomAdvanced.execute(noise, guider, sampler, sigmas, start or latent()).args
    return out["samples"].clone(), denoised["samples"].clone()


def close(value: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal up to ``tolerance`` of the largest value."""
    assert value.shape == expected.shape and torch.isfinite(value).all()
    assert (value - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))
