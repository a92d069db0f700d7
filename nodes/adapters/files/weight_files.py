"""Weights as authors publish them: single files, official folders, shards, and what trainers wrapped around them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import comfy.memory_management
import comfy.utils
from torch import Tensor

from ....flowcache_core.errors import SettingError
from ....flowcache_core.models.common.checkpoint import read_state_dict
from ....flowcache_core.models.common.sharded import NAMES, read_sharded
from ....flowcache_core.models.wan.config import WanConfig
from ....flowcache_core.models.wan.skyreels_checkpoint import official_config

FIELD = "model_name"
READABLE = "a complete .safetensors file, or a .pt / .pth file that holds nothing but weights"
ARCHITECTURE = (
    "weights of a Wan 2.1 text-to-video model (Self-Forcing, Causal-Forcing, Krea, LongLive, SkyReels-V2 DF ...)"
)
INDEX = ".safetensors.index.json"
SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


def whole_models(files: Iterable[str]) -> list[str]:
    """The list a user chooses from: the index in place of its shards."""
    return sorted({SHARD.sub(INDEX, name) for name in files})


def read(path: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors of a file or of the shards of an index, on the CPU, and text metadata. A pickle is read as weights only.

    SettingError naming this node's field, the file and what is wrong with it.
    """
    file = Path(path)
    try:
        if not file.name.endswith(INDEX):
            tensors, metadata = read_state_dict(file)
            return as_host_maps(path, tensors), metadata
        if not file.is_file():
            raise SettingError(FIELD, f"shards without {file.name}", "all shards and their index in one folder")
        return read_sharded(file)
    except SettingError as error:
        raise error if error.field == FIELD else error.within(FIELD) from error


def as_host_maps(path: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, checked above, as the host maps them where it streams weights from their place in the file."""
    if not (comfy.memory_management.aimdo_enabled and path.lower().endswith((".safetensors", ".sft"))):
        return tensors
    content: dict[str, Any] = comfy.utils.load_torch_file(path)
    return content if content.keys() == tensors.keys() else tensors


def folder_sizes(path: str, weights: Mapping[str, Tensor]) -> dict[str, int]:
    """What the host cannot see in the weights, out of an official folder's config.json; empty without one.

    SettingError when that file says something else than the weights do.
    """
    file = Path(path)
    if not (file.name in NAMES or file.name.endswith(INDEX)):
        return {}
    try:
        metadata = official_config(file.parent)
        config = WanConfig.from_state_dict(weights, metadata) if metadata else None
    except SettingError as error:
        raise error.within(f"{FIELD}, {file.parent.name}/config.json") from None
    return {} if config is None else {key: getattr(config, key) for key in ("num_heads", "text_dim", "freq_dim")}
