"""Weights as authors publish them: single files, official folders, shards, and what trainers wrapped around them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import comfy.utils
from torch import Tensor

from ....flowcache_core.errors import SettingError
from ....flowcache_core.models.common.checkpoint import NESTED_NAMES
from ....flowcache_core.models.common.sharded import NAMES, read_weights
from ....flowcache_core.models.wan.skyreels_checkpoint import official_config
from ....flowcache_core.models.wan.transformer import WanConfig

FIELD = "model_name"
READABLE = "a complete .safetensors file, or a .pt / .pth file that holds nothing but weights"
ARCHITECTURE = (
    "weights of a Wan 2.1 text-to-video model (Self-Forcing, Causal-Forcing, Krea, LongLive, SkyReels-V2 DF ...)"
)
QUANTISED = "_quantization_metadata"
"""Where newer files of the host list their quantised layers, under the names that the keys have in the file."""
INDEX = ".safetensors.index.json"
SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")

# What FSDP, activation checkpointing and torch.compile put between the names of modules.
WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
LANDMARK = "head.modulation"
"""A key that every Wan model has; what stands before it is a prefix of all its keys."""


def whole_models(files: Iterable[str]) -> list[str]:
    """The list a user chooses from: the index in place of its shards."""
    return sorted({SHARD.sub(INDEX, name) for name in files})


def read(path: str) -> tuple[Mapping[str, Any], dict[str, str]]:
    """What a file or the shards of an index hold, on the CPU, and text metadata. A pickle is read as weights only."""
    name = Path(path).name
    if name.endswith(INDEX):
        return read_shards(Path(path)), {}
    try:
        content, metadata = comfy.utils.load_torch_file(path, safe_load=True, return_metadata=True)
    except Exception as error:  # a damaged file fails in whatever way its bytes say
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingError(FIELD, f"{name}: {reason}", READABLE) from error
    if not isinstance(content, Mapping):
        raise SettingError(FIELD, f"{name}: a {type(content).__name__}", READABLE)
    return content, dict(metadata or {})


def read_shards(index: Path) -> dict[str, Tensor]:
    if not index.is_file():
        raise SettingError(FIELD, f"shards without {index.name}", "all shards and their index in one folder")
    try:
        return read_weights(index)
    except SettingError as error:
        raise SettingError(FIELD, f"{error.field}: {error.value}", error.accepted) from error


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
        raise SettingError(
            FIELD, f"{file.parent.name}/config.json, {error.field}: {error.value}", error.accepted
        ) from None
    return {} if config is None else {key: getattr(config, key) for key in ("num_heads", "text_dim", "freq_dim")}


def quantisation(metadata: Mapping[str, str], weights: Mapping[str, Tensor]) -> dict[str, str]:
    """The file's metadata; its list of quantised layers, if any, with the names in ``weights`` and without others."""
    if QUANTISED not in metadata:
        return dict(metadata)
    given = json.loads(metadata[QUANTISED])
    layers = {}
    for name, how in given["layers"].items():
        while f"{name}.weight" not in weights and "." in name:
            name = name.partition(".")[2]
        if f"{name}.weight" in weights:
            layers[name] = how
    return {**metadata, QUANTISED: json.dumps({**given, "layers": layers})}


def wan_weights(content: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    """The transformer's tensors under their official names, out of whatever a trainer wrapped them in."""
    while inner := next((content[key] for key in NESTED_NAMES if isinstance(content.get(key), Mapping)), None):
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
    return NESTED_NAMES.index(first) if first in NESTED_NAMES else len(NESTED_NAMES)
