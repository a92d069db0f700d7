"""The host's AR sampler on weights of another dtype than the one the model computes in: it runs, to the right video."""

from __future__ import annotations

import pytest
import torch
from hostkit import (
    BLOCKWISE,
    HEIGHT,
    WIDTH,
    close,
    compress,
    hosts,
    latent,
    load,
    module,
    ours,
    reuse,
    sample,
    state_dict,
)
from torch import Tensor

with_slot = module("nodes.adapters.run.outer").with_slot
last_record = module("nodes.adapters.run.settings").last_record


def scaled_fp8() -> dict[str, Tensor]:
    """As the host's older fp8 files hold them: one scale per layer, and a mark."""
    stored: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for key, tensor in state_dict().items():
        stored[key] = tensor
        if key.startswith("blocks.") and tensor.ndim == 2:
            scale = tensor.abs().max() / 448
            stored |= {key: (tensor / scale).to(torch.float8_e4m3fn), key.replace("weight", "scale_weight"): scale}
    return stored


KINDS = {
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
    "fp16": {"dtype": torch.float16},
    "bf16": {"dtype": torch.bfloat16},
    "scaled fp8": {"weights": scaled_fp8()},
    "same": {},
}


@pytest.fixture(params=KINDS, scope="module")
def model(request):
    with torch.inference_mode():  # as the host runs nodes; its quantised tensors cannot be moved otherwise
        loaded = load(**KINDS[request.param])
        if request.param.startswith("fp"):
            assert loaded.model.get_dtype() == KINDS[request.param]["dtype"] != loaded.model.get_dtype_inference()
        yield loaded


def with_image(model):
    """As the host's ARVideoI2V leaves it."""
    image = torch.randn(1, 16, 1, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(3))
    other = model.clone()
    other.model_options["transformer_options"]["ar_config"] = {"initial_latent": image}
    return other


PATCHES = {
    "from our loader": lambda model: with_slot(model.clone()),
    "reuse": lambda model: reuse(model, policy="schedule", computed_steps="0, 2"),
    "whole budget": lambda model: compress(model, 100),
    "budget and reuse": lambda model: compress(reuse(model, policy="schedule", computed_steps="0, 2"), 1),
}


@pytest.mark.parametrize("start", ["text", "image"])
@pytest.mark.parametrize("patch", PATCHES)
def test_as_our_sampler_makes_it(model, patch, start):
    patched = PATCHES[patch](with_image(model) if start == "image" else model)
    video = latent(33)
    made = sample(patched, hosts(1), start=video)[0]
    record = last_record(patched)
    close(made, sample(patched, ours({**BLOCKWISE, "chunk_frames": 1}), start=video)[0])
    assert record.kv_bytes == last_record(patched).kv_bytes
    assert "get_dtype" not in vars(model.model)
