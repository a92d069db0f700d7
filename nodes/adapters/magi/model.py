"""MAGI-1 in the host's classes: a MODEL whose transformer is the core's, built from the host's operations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.supported_models_base
import torch
from torch import Tensor, nn

from ....flowcache_core.errors import SettingError, require
from ....flowcache_core.models.magi.config import LATENT_CHANNELS, MagiConfig
from ....flowcache_core.models.magi.guidance import GuidanceScales
from ....flowcache_core.models.magi.transformer import MagiTransformer, attention_dtype, fill_magi, read_magi
from ....flowcache_core.models.magi.vae import LATENT_SCALE
from ....flowcache_core.schedule import magi
from ..files.checkpoints import WEIGHT_DTYPES
from ..files.weight_files import FIELD, INDEX

COMPUTE_DTYPES = [torch.bfloat16, torch.float32]
TABLE_STEPS = 960
"""Noise levels of the sampling table: all numbers of steps that MAGI-1 is published with divide it."""
REFERENCE_DIM = 3072
"""Width at which a token's activations fit the host's estimate with factor 1: counted, not measured on a GPU."""


@dataclass(frozen=True)
class MagiVariant:
    """How the weights are run: distilled ones take one forward per step, others three, combined by ``guidance``.

    nearly_clean, ranges, clean_range: as in the core's MagiDenoiser.
    """

    distilled: bool = True
    nearly_clean: bool = True
    guidance: GuidanceScales | None = GuidanceScales()
    ranges: tuple[int, ...] = ()
    clean_range: int | None = None


class MagiLatents(comfy.latent_formats.LatentFormat):
    """Four pixel frames per latent frame, the first one too. No colours are known for previews without a decoder."""

    scale_factor = LATENT_SCALE
    latent_channels = LATENT_CHANNELS
    latent_dimensions = 3
    temporal_downscale_ratio = 4


class MagiNoiseLevels(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """MAGI-1's noise levels (:func:`.schedule.magi`) as the table that schedulers read; "simple" hits them exactly."""

    def set_parameters(self, shift: float = 1.0, timesteps: int = TABLE_STEPS, multiplier: float = 1000) -> None:
        self.shift, self.multiplier = shift, multiplier
        self.register_buffer("sigmas", torch.tensor(magi(timesteps).sigmas[:-1][::-1]))

    def sigma(self, timestep: Any) -> Any:
        return timestep / self.multiplier

    def percent_to_sigma(self, percent: float) -> float:
        u = min(1.0, max(0.0, percent))
        return 1.0 - u * u / (3 - 2 * u * u)


class MagiHostConfig(comfy.supported_models_base.BASE):
    """What the host's BaseModel asks of a model's description."""

    unet_extra_config: dict[str, Any] = {}
    latent_format: Any = MagiLatents
    supported_inference_dtypes = COMPUTE_DTYPES


class MagiHostModel(comfy.model_base.BaseModel):
    """BaseModel around a :class:`MagiTransformer`. Only our sampler can run it: chunks need a K/V cache."""

    def __init__(self, config: MagiHostConfig, variant: MagiVariant, build: Any) -> None:
        super().__init__(config, comfy.model_base.ModelType.FLOW, unet_model=build)
        self.variant = variant
        self.model_sampling = MagiNoiseLevels(config)

    def _apply_model(self, *args: Any, **kwargs: Any) -> Tensor:
        raise SettingError("sampler", "one that knows no chunks", "AR Video Sampler (FlowCache), plan sliding window")


def load_magi_model(path: str, weight_dtype: str, variant: MagiVariant) -> Any:
    """A ModelPatcher of the weights at ``path``: a file or the index of its shards.

    fp8 files are multiplied out and kept in 16 bits unless ``weight_dtype`` says otherwise. SettingError naming what is
    missing, damaged or of another architecture.
    """
    require(weight_dtype in WEIGHT_DTYPES, "weight_dtype", weight_dtype, ", ".join(WEIGHT_DTYPES))
    name = Path(path).name
    unread = path.endswith(INDEX) and not Path(path).is_file()
    require(not unread, FIELD, f"shards without {name}", "all shards and their index in one folder")
    try:
        config, state_dict = read_magi(path)
        model = magi_patcher(config, state_dict, name, variant, **WEIGHT_DTYPES[weight_dtype])
    except SettingError as error:
        raise SettingError(FIELD, f"{error.field}: {error.value}", error.accepted) from error
    model.cached_patcher_init = (load_magi_model, (path, weight_dtype, variant))
    return model


def magi_patcher(
    config: MagiConfig,
    state_dict: dict[str, Tensor],
    name: str,
    variant: MagiVariant,
    *,
    latent_format: type[comfy.latent_formats.LatentFormat] = MagiLatents,
    dtype: torch.dtype | None = None,
    fp8_optimizations: bool = False,
) -> Any:
    """A ModelPatcher of weights in memory. dtype: of the blocks' linear layers, None for what the host finds best."""
    management = comfy.model_management
    device, offload = management.get_torch_device(), management.unet_offload_device()
    count = sum(tensor.numel() for tensor in state_dict.values())
    best = management.unet_dtype(
        model_params=count, supported_dtypes=COMPUTE_DTYPES, weight_dtype=attention_dtype(state_dict)
    )
    stored = dtype or best
    cast = management.unet_manual_cast(stored, device, COMPUTE_DTYPES)

    def build(device: Any, operations: Any, **_: Any) -> MagiTransformer:
        compute = cast or stored
        with torch.device("meta"):
            model = MagiTransformer(config, operations=operations, dtype=compute, compute_dtype=compute)
        fill_magi(model, state_dict, name)
        if dtype is not None:
            store_linear_weights(model.videodit_blocks, dtype)
        return model

    description = MagiHostConfig({})
    description.latent_format = latent_format()
    description.memory_usage_factor = config.dim / REFERENCE_DIM
    description.optimizations["fp8"] = fp8_optimizations
    description.set_inference_dtype(stored, cast)
    model = MagiHostModel(description, variant, build)
    if not management.is_device_cpu(offload):
        model.to(offload)
    return comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=offload)


def store_linear_weights(blocks: nn.Module, dtype: torch.dtype) -> None:
    """The linear layers of the blocks in another format than they compute in; norms and fp32 parts stay as they are."""
    for layer in blocks.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = layer.weight.data.to(dtype)


def looks_distilled(name: str) -> bool:
    """Whether weights are distilled, which only the names of MAGI-1's folders say: the tensors are alike."""
    return "distill" in name.lower()
