"""What is known of a model: of one that is loaded, or of the file that a loader names, without loading it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_management
import torch

from ....flowcache_core.dry_run.estimate import Model
from ....flowcache_core.errors import SettingError
from ....flowcache_core.mini import TRANSFORMER_FILE as MINI_WAN
from ....flowcache_core.mini_magi import TRANSFORMER_FILE as MINI_MAGI
from ....flowcache_core.mini_scenes import TRANSFORMER_FILE as MINI_SCENES
from ....flowcache_core.models.magi.config import BLOCKS, MagiConfig
from ....flowcache_core.models.magi.transformer import MagiTransformer
from ....flowcache_core.models.wan.config import WanConfig
from ....flowcache_core.models.wan.keys import transformer_tensors
from ..files.listed import listed_file
from ..files.weight_files import folder_sizes, read
from .graph import Graph, NotKnownError

FOLDER = "diffusion_models"
# Loader -> the field with its file. The mini models are the pack's own files.
LOADERS = {"FlowCacheLoadARModel": "model_name", "FlowCacheLoadMagiModel": "model_name", "UNETLoader": "unet_name"}
MINI = "FlowCacheMiniModel"
BUNDLED = {"wan": MINI_WAN, "magi": MINI_MAGI, "scenes": MINI_SCENES}


def of_patcher(patcher: Any, branches: int) -> Model:
    """A loaded model. NotKnownError for one that none of our samplers runs."""
    inside, transformer = patcher.model, patcher.model.diffusion_model
    weights, dtype = patcher.model_size(), inside.get_dtype_inference()
    if isinstance(transformer, MagiTransformer):
        variant = inside.variant
        return magi(transformer.config, weights, dtype, variant.distilled, variant.distilled and variant.nearly_clean)
    try:
        config = WanConfig(
            transformer.dim, transformer.ffn_dim, len(transformer.blocks), transformer.num_heads, transformer.in_dim,
            transformer.out_dim, transformer.text_dim, transformer.freq_dim, tuple(transformer.patch_size),
        )  # fmt: skip
    except AttributeError as error:
        raise NotKnownError(f"a {type(transformer).__name__} is not known") from error
    return Model(config, weights, dtype, branches, branches)


def magi(config: MagiConfig, weights: int, dtype: torch.dtype, distilled: bool, nearly_clean: bool) -> Model:
    forwards, kept = (1, 1) if distilled else (3, 2)
    return Model(config, weights, dtype, forwards, kept, nearly_clean)


def of_loader(graph: Graph, node: str, branches: int) -> Model:
    """The model that a loader node will load. NotKnownError for a loader or file that is not ours to read."""
    kind = graph.kind(node)
    if kind == MINI:
        name = graph.value(node, "model", "wan")
        if name not in BUNDLED:
            raise NotKnownError(f"model {name!r:.40} is not known")
        found = _measured(str(BUNDLED[name]), 0, "default")
        distilled = False
    elif kind in LOADERS:
        field = LOADERS[kind]
        try:
            path = listed_file(FOLDER, graph.value(node, field), field)
            found = _measured(path, Path(path).stat().st_mtime_ns, str(graph.value(node, "weight_dtype", "default")))
        except (SettingError, OSError) as error:
            raise NotKnownError(str(error)) from error
        distilled = graph.value(node, "variant", "distilled") != "base"
    else:
        raise NotKnownError(f"the model comes from {kind}, whose file is not read before the run")
    if isinstance(found.config, MagiConfig):
        return magi(found.config, found.weights, found.dtype, distilled, distilled)
    return replace(found, branches=branches, kv_branches=branches)


def file_of(graph: Graph, node: str) -> str:
    """Name of the file that a loader node will load, "" where it does not say."""
    kind = graph.kind(node)
    if kind == MINI:
        return BUNDLED[name].name if (name := graph.value(node, "model", "wan")) in BUNDLED else ""
    return Path(str(graph.value(node, LOADERS[kind]))).name if kind in LOADERS else ""


@lru_cache(maxsize=16)
def _measured(path: str, changed: int, weight_dtype: str) -> Model:
    """Sizes of a file's model as the host will hold it. ``changed``: so that a file replaced by another is read."""
    tensors, metadata = read(path)
    if any(key.startswith(BLOCKS) for key in tensors):
        config: WanConfig | MagiConfig = MagiConfig.from_state_dict(tensors)
    else:
        tensors = transformer_tensors(tensors, Path(path).name)
        if sizes := folder_sizes(path, tensors):
            metadata = {**metadata, "config": json.dumps({"transformer": sizes})}
        config = WanConfig.from_state_dict(tensors, metadata)
    values = sum(tensor.numel() for tensor in tensors.values())
    held, computed = formats(values, _widest(tensors), weight_dtype)
    return Model(config, values * held.itemsize, computed)


def formats(values: int, stored: torch.dtype, weight_dtype: str) -> tuple[torch.dtype, torch.dtype]:
    """In which format the host will hold that many weights, and in which it will compute."""
    management, device = comfy.model_management, comfy.model_management.get_torch_device()
    if weight_dtype.startswith("fp8") or stored.itemsize == 1:
        held = torch.float8_e4m3fn
    else:
        held = management.unet_dtype(model_params=values, weight_dtype=stored)
    return held, management.unet_manual_cast(held, device) or held


def _widest(tensors: Mapping[str, torch.Tensor]) -> torch.dtype:
    """The format of most values."""
    counts: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    return max(counts, key=lambda dtype: counts[dtype])
