"""Autoregressive Wan checkpoints as their authors publish them, loaded by the host's own classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.sd
import comfy.utils
import torch
from torch import Tensor
from torch.nn import functional

from ...flowcache_core.errors import SettingError, require

FIELD = "model_name"
FAMILIES = ("auto", "causal wan", "skyreels-v2-df")
WEIGHT_DTYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
READABLE = "a complete .safetensors file, or a .pt / .pth file that holds nothing but weights"
ARCHITECTURE = (
    "weights of a Wan 2.1 text-to-video model (Self-Forcing, Causal-Forcing, Krea, LongLive, SkyReels-V2 DF ...)"
)

# Where trainers put the weights, best first: averaged weights before raw ones.
NESTED = ("generator_ema", "generator", "model_ema", "ema", "state_dict", "model", "module")
# What FSDP, activation checkpointing and torch.compile put between the names of modules.
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
LANDMARK = "head.modulation"
"""A key that every Wan model has; what stands before it is a prefix of all its keys."""


def load_ar_model(path: str, weight_dtype: str, family: str, fps: int) -> Any:
    """A ModelPatcher. SettingError naming the node's field when the file or a choice is not usable."""
    require(weight_dtype in WEIGHT_DTYPES, "weight_dtype", weight_dtype, ", ".join(WEIGHT_DTYPES))
    require(family in FAMILIES, "family", family, ", ".join(FAMILIES))
    name = Path(path).name
    state_dict, metadata = read(path)
    weights = wan_weights(state_dict, name)
    has_fps = "fps_embedding.weight" in weights
    if family == "skyreels-v2-df":
        require(
            has_fps, FIELD, name, "a SkyReels-V2 DF checkpoint, with fps_embedding.weight, for family skyreels-v2-df"
        )
    if family == "causal wan":
        require(not has_fps, FIELD, name, "a checkpoint without frame-rate embedding for family causal wan")
    offset = FrameRate.taken_from(weights, fps) if has_fps else None
    model = build(weights, tagged(metadata, causal=not has_fps), WEIGHT_DTYPES[weight_dtype], name)
    if offset is not None:
        target = "diffusion_model.time_projection.forward"
        model.add_object_patch(target, AddFrameRate(model.get_model_object(target), offset))
    model.cached_patcher_init = (load_ar_model, (path, weight_dtype, family, fps))
    return model


def read(path: str) -> tuple[Mapping[str, Any], dict[str, str]]:
    """What the file holds, on the CPU, and its text metadata. A pickle is read as weights only."""
    try:
        content, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    except Exception as error:  # a damaged file fails in whatever way its bytes say
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingError(FIELD, f"{Path(path).name}: {reason}", READABLE) from error
    if not isinstance(content, Mapping):
        raise SettingError(FIELD, f"{Path(path).name}: a {type(content).__name__}", READABLE)
    return content, dict(metadata or {})


def wan_weights(content: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The transformer's tensors under their official names, out of whatever a trainer wrapped them in."""
    while (inner := next((content[key] for key in NESTED if isinstance(content.get(key), Mapping)), None)) is not None:
        content = inner
    weights = {unwrapped(key): tensor for key, tensor in content.items() if isinstance(tensor, Tensor)}
    prefixes = [key.removesuffix(LANDMARK) for key in weights if key.endswith(LANDMARK)]
    if not prefixes:
        raise SettingError(FIELD, f"{name}: no key {LANDMARK}", ARCHITECTURE)
    prefix = min(prefixes, key=lambda found: (preference(found), len(found)))
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}


def unwrapped(key: str) -> str:
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    return key


def preference(prefix: str) -> int:
    first = prefix.split(".", 1)[0]
    return NESTED.index(first) if first in NESTED else len(NESTED)


def tagged(metadata: Mapping[str, str], causal: bool) -> dict[str, str]:
    """The file's metadata with the one mark by which the host knows a causal model."""
    try:
        config = json.loads(metadata.get("config", "{}"))
    except json.JSONDecodeError:
        config = {}
    transformer = {**config.get("transformer", {})}
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
        names = ("fps_embedding.weight", *(f"fps_projection.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")))
        missing = [key for key in names if key not in weights]
        require(not missing, FIELD, f"{missing[:1]} missing", "all of SkyReels-V2's frame-rate weights")
        table, first, first_bias, second, second_bias = (weights.pop(key).float() for key in names)
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
