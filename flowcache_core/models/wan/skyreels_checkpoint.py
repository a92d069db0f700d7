"""SkyReels-V2 transformers from the forms they are published in: official folders, shards, ComfyUI's single files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from ...errors import Found, SettingError
from ...reading.json_text import read_object
from ...reading.regular_file import is_file, is_folder
from ..common.checkpoint import read_state_dict
from ..common.scaled_fp8 import FP8, dequantised
from ..common.sharded import read_sharded
from .config import WanConfig
from .keys import transformer_tensors
from .load import wan_from_tensors
from .transformer import WanTransformer

# dim -> name and whether the model has a frame-rate embedding
SIZES: Mapping[int, tuple[str, bool]] = {1536: ("1.3B", True), 5120: ("14B", False)}
FRAME_RATE = ("fps_embedding.", "fps_projection.")
CONFIG = "config.json"
# What of the official config.json says something about the architecture, and our name for it.
KNOWN = {**{field.name: field.name for field in fields(WanConfig)}, "patch_size": "patch", "model_type": "model_type"}


def load_skyreels(path: str | Path, dtype: torch.dtype | None = None) -> WanTransformer:
    """The transformer of a SkyReels-V2 Diffusion Forcing model, frozen and in eval mode, on the CPU.

    path: an official folder (config.json, and model.safetensors or its index and shards), an index, or a single file;
    fp8 weights with ComfyUI's scales are multiplied out. dtype: None for that of the weights, bf16 when those are fp8.
    SettingError naming shards that are missing, files that are damaged, and models of another family or size.
    """
    path = Path(path)
    whole = is_folder(path) or path.name.endswith(".index.json")
    if whole:
        tensors, metadata = read_sharded(path)
        metadata = {**metadata, **official_config(path if is_folder(path) else path.parent)}
    else:
        tensors, metadata = read_state_dict(path)
    tensors = transformer_tensors(tensors, f"checkpoint {path.name}")
    if any(tensor.dtype in FP8 for tensor in tensors.values()):
        dtype = dtype or torch.bfloat16
        tensors = dequantised(tensors, dtype, metadata)
    if misfit := family_misfit(tensors):
        raise SettingError(f"checkpoint {path.name}", misfit.found, misfit.accepted)
    return wan_from_tensors(tensors, metadata, path, dtype)


def official_config(folder: Path) -> dict[str, str]:
    """A folder's config.json in the form that single files carry as metadata; empty without one."""
    file = folder / CONFIG
    if not is_file(file):
        return {}
    given = read_object(file, f"{folder.name}/{CONFIG}", "the model's configuration")
    known = {KNOWN[key]: value for key, value in given.items() if key in KNOWN}
    return {"config": json.dumps({"transformer": known})}


@dataclass(frozen=True)
class Misfit:
    """What a file is, and what would have been accepted."""

    found: str
    accepted: str


def family_misfit(tensors: Mapping[str, Tensor]) -> Misfit | None:
    """The 1.3B has a frame-rate embedding and the 14B has none: what differs is another model's file."""
    embedding = tensors.get("patch_embedding.weight")
    if embedding is None or not embedding.dim() or embedding.shape[0] not in SIZES:
        return None
    size, expected = SIZES[embedding.shape[0]]
    found = sorted(key for key in tensors if key.startswith(FRAME_RATE))
    if bool(found) == expected:
        return None
    what = f"a {size} model with {found[0]}" if found else f"a {size} model without fps_embedding.weight"
    has = "which has a frame-rate embedding" if expected else "which has no frame-rate embedding"
    return Misfit(Found(what), f"SkyReels-V2-DF {size}, {has}")
