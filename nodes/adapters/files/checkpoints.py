"""Autoregressive Wan checkpoints as their authors publish them, loaded by the host's own classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import torch
from torch import Tensor
from torch.nn import functional

from ....flowcache_core.errors import SettingError, require
from ....flowcache_core.models.common.scaled_fp8 import MARKER, dequantised
from ....flowcache_core.models.wan.skyreels_checkpoint import FRAME_RATE, family_misfit
from .weight_files import ARCHITECTURE, FIELD, READABLE, folder_sizes, quantisation, read, wan_weights

FAMILIES = (AUTO, CAUSAL, SKYREELS) = ("auto", "causal wan", "skyreels-v2-df")
WEIGHT_DTYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}


def load_ar_model(path: str, weight_dtype: str, family: str, fps: int) -> Any:
    """A ModelPatcher. SettingError naming the node's field when the file or a choice is not usable."""
    require(weight_dtype in WEIGHT_DTYPES, "weight_dtype", weight_dtype, ", ".join(WEIGHT_DTYPES))
    require(family in FAMILIES, "family", family, ", ".join(FAMILIES))
    name = Path(path).name
    state_dict, metadata = read(path)
    weights = wan_weights(state_dict, name)
    has_fps = "fps_embedding.weight" in weights
    if family == CAUSAL:
        require(not has_fps, FIELD, name, f"a checkpoint without frame-rate embedding for family {CAUSAL}")
    skyreels = has_fps or family == SKYREELS
    if skyreels and (misfit := family_misfit(weights)):
        raise SettingError(FIELD, f"{name}: {misfit.found}", misfit.accepted)
    sizes = folder_sizes(path, weights)
    offset = FrameRate.taken_from(weights, fps) if has_fps else None
    metadata = tagged(quantisation(metadata, weights), causal=not skyreels, sizes=sizes)
    model = build(weights, metadata, WEIGHT_DTYPES[weight_dtype], name)
    if offset is not None:
        target = "diffusion_model.time_projection.forward"
        model.add_object_patch(target, AddFrameRate(model.get_model_object(target), offset))
    model.cached_patcher_init = (load_ar_model, (path, weight_dtype, family, fps))
    return model


def tagged(metadata: Mapping[str, str], causal: bool, sizes: Mapping[str, int]) -> dict[str, str]:
    """The file's metadata with the one mark by which the host knows a causal model, and with ``sizes``."""
    try:
        config = json.loads(metadata.get("config", "{}"))
    except json.JSONDecodeError:
        config = {}
    transformer = {**config.get("transformer", {}), **sizes}
    if causal:
        transformer["causal_ar"] = True
    return {**metadata, "config": json.dumps({**config, "transformer": transformer})}


def build(weights: dict[str, Tensor], metadata: dict[str, str], options: dict[str, Any], name: str) -> Any:
    """The host's model; SettingError when it is of another architecture or weights are missing."""
    channels = weights["patch_embedding.weight"].shape[1] if "patch_embedding.weight" in weights else None
    require(channels == 16, FIELD, f"{name}: {channels} input channels", ARCHITECTURE)
    known = set(weights)
    try:
        model = comfy.sd.load_diffusion_model_state_dict(weights, model_options=dict(options), metadata=metadata)
    except comfy.model_management.OOM_EXCEPTION:
        raise
    except (RuntimeError, TypeError, ValueError, KeyError) as error:
        raise SettingError(FIELD, f"{name}: {str(error).splitlines()[0]}", ARCHITECTURE) from error
    if model is None:
        raise SettingError(FIELD, f"{name}: an architecture ComfyUI does not know", ARCHITECTURE)
    missing = [key for key, _ in model.model.diffusion_model.named_parameters() if key not in known]
    require(not missing, FIELD, f"{name}: {len(missing)} weights missing, such as {missing[:1]}", READABLE)
    return model


@dataclass(frozen=True)
class FrameRate:
    """SkyReels-V2's frame-rate term: one vector ``[6 * dim]`` that is added to every time modulation."""

    vector: Tensor

    @classmethod
    def taken_from(cls, weights: dict[str, Tensor], fps: int) -> FrameRate:
        """Compute it and take its five tensors out of ``weights``, where the host would report them as unknown."""
        own = {key: weights.pop(key) for key in list(weights) if key.startswith(FRAME_RATE)}
        marker = {MARKER: weights[MARKER]} if MARKER in weights else {}
        plain = dequantised({**own, **marker}, torch.float32)
        names = ("fps_embedding.weight", *(f"fps_projection.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")))
        missing = [key for key in names if key not in plain]
        require(not missing, FIELD, f"{missing[:1]} missing", "all of SkyReels-V2's frame-rate weights")
        table, first, first_bias, second, second_bias = (plain[key].float() for key in names)
        hidden = functional.linear(table[0 if fps == 16 else 1], first, first_bias)
        return cls(functional.linear(functional.silu(hidden), second, second_bias))


@dataclass(frozen=True)
class AddFrameRate:
    """In place of the time projection's forward."""

    original: Callable[[Tensor], Tensor]
    rate: FrameRate

    def __call__(self, embedding: Tensor) -> Tensor:
        modulation = self.original(embedding)
        return modulation + self.rate.vector.to(modulation)
