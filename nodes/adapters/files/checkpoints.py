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

from ....flowcache_core.errors import Found, SettingError, listed, require
from ....flowcache_core.models.common.checkpoint import WEIGHT_DTYPES as WEIGHT_FORMATS
from ....flowcache_core.models.common.checkpoint import misfits
from ....flowcache_core.models.common.scaled_fp8 import FP8, MARKER, dequantised, is_beside
from ....flowcache_core.models.wan.config import WanConfig
from ....flowcache_core.models.wan.keys import transformer_tensors
from ....flowcache_core.models.wan.load import on_meta
from ....flowcache_core.models.wan.skyreels_checkpoint import FRAME_RATE, family_misfit
from ....flowcache_core.reading.json_text import parse_object
from .quantised import host_form, layer_of, packed_layers
from .weight_files import ARCHITECTURE, FIELD, READABLE, folder_sizes, read

FRAME_RATE_PATCH = "diffusion_model.time_projection.forward"
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
    tensors, metadata = read(path)
    try:
        weights = transformer_tensors(tensors, name)
        has_fps = "fps_embedding.weight" in weights
        if family == CAUSAL:
            require(not has_fps, FIELD, name, f"a checkpoint without frame-rate embedding for family {CAUSAL}")
        skyreels = has_fps or family == SKYREELS
        if skyreels and (misfit := family_misfit(weights)):
            raise SettingError(FIELD, Found(f"{name}: {misfit.found}"), misfit.accepted)
        sizes = folder_sizes(path, weights)
        weights, metadata = host_form(weights, metadata)
        metadata = tagged(metadata, causal=not skyreels and not wide(weights), sizes=sizes)
        check(weights, metadata, name)
        offset = FrameRate.taken_from(weights, fps) if has_fps else None
    except SettingError as error:
        raise error if error.field.startswith(FIELD) else error.within(FIELD) from error
    model = build(weights, metadata, WEIGHT_DTYPES[weight_dtype], name)
    if offset is not None:
        model.add_object_patch(FRAME_RATE_PATCH, AddFrameRate(model.get_model_object(FRAME_RATE_PATCH), offset))
    model.cached_patcher_init = (load_ar_model, (path, weight_dtype, family, fps))
    return model


def tagged(metadata: Mapping[str, str], causal: bool, sizes: Mapping[str, int]) -> dict[str, str]:
    """The file's metadata with the one mark by which the host knows a causal model, and with ``sizes``.

    SettingError when the file's own configuration is not readable.
    """
    form = 'JSON of the form {"transformer": {...}}'
    config = parse_object(metadata.get("config", "{}"), "metadata config", form)
    given = config.get("transformer", {})
    require(isinstance(given, dict), "metadata config", given, form)
    transformer = {**given, **sizes}
    if causal:
        transformer["causal_ar"] = True
    return {**metadata, "config": json.dumps({**config, "transformer": transformer})}


def wide(weights: Mapping[str, Tensor]) -> bool:
    """Whether these are Wan 2.2's 5B blocks, whose latents have 48 channels: the host has no causal class for them, and
    its plain one serves."""
    first = weights.get("patch_embedding.weight")
    return first is not None and first.dim() > 1 and first.shape[1] == 48


def check(weights: Mapping[str, Tensor], metadata: Mapping[str, str], name: str) -> None:
    """SettingError unless these are all weights of one Wan text-to-video model and nothing else, before any is made."""
    first = weights.get("patch_embedding.weight")
    channels = first.shape[1] if first is not None and first.dim() > 1 else None
    require(channels in (16, 48), FIELD, Found(f"{name}: {channels} input channels"), ARCHITECTURE)
    packed = packed_layers(weights)
    plain = {key: tensor for key, tensor in weights.items() if not is_beside(key) and layer_of(key) not in packed}
    linear = {f"{layer}.weight": torch.empty(shape, device="meta") for layer, shape in packed.items()}
    config = WanConfig.from_state_dict({**plain, **linear}, metadata)
    wanted = {key: tensor for key, tensor in on_meta(config).state_dict().items() if layer_of(key) not in packed}
    for problem, keys in misfits(wanted, plain, (*WEIGHT_FORMATS, *FP8)).items():
        if problem == "missing":
            found, accepted = f"{len(keys)} weights missing, such as {listed(keys, 1)}", READABLE
        else:
            found, accepted = f"{problem}: {listed(keys)}", ARCHITECTURE
        raise SettingError(FIELD, Found(f"{name}: {found}"), accepted)


def build(weights: dict[str, Tensor], metadata: dict[str, str], options: dict[str, Any], name: str) -> Any:
    """The host's model; SettingError when it does not know it, or leaves out a tensor of the file."""
    known = set(weights)
    try:
        model = comfy.sd.load_diffusion_model_state_dict(weights, model_options=dict(options), metadata=metadata)
    except comfy.model_management.OOM_EXCEPTION:
        raise
    except Exception as error:  # the host's loaders fail in whatever way the weights say
        reason = listed((str(error) or type(error).__name__).splitlines(), 1)
        raise SettingError(FIELD, Found(f"{name}: {reason}"), ARCHITECTURE) from error
    if model is None:
        raise SettingError(FIELD, Found(f"{name}: an architecture ComfyUI does not know"), ARCHITECTURE)
    held = set(model.model.diffusion_model.state_dict())
    require(not known - held, FIELD, Found(f"{name}: not read by ComfyUI: {listed(sorted(known - held))}"), READABLE)
    return model


@dataclass(frozen=True)
class FrameRate:
    """SkyReels-V2's frame-rate term: one vector ``[6 * dim]`` that is added to every time modulation. fps: it says."""

    vector: Tensor
    fps: int

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
        return cls(functional.linear(functional.silu(hidden), second, second_bias), fps)


@dataclass(frozen=True)
class AddFrameRate:
    """In place of the time projection's forward."""

    original: Callable[[Tensor], Tensor]
    rate: FrameRate

    def __call__(self, embedding: Tensor) -> Tensor:
        modulation = self.original(embedding)
        return modulation + self.rate.vector.to(modulation)
