"""Weights of a model that may lie in one file, or in a folder as shards with an index."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from ...errors import SettingError
from .checkpoint import read_state_dict

NAMES = ("model.safetensors", "diffusion_pytorch_model.safetensors")
SUBFOLDERS = "inference_weight*"
ACCEPTED = "a weight file, or a folder with " + " or ".join(
    f"{name} (or {name}.index.json and its shards)" for name in NAMES
)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a weight file, an index, or a folder, on the CPU.

    A folder without weights that holds one ``inference_weight*`` folder (as MAGI-1 is published) stands for that one.
    SettingError naming the shards that are missing, or the folders to choose from.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    return read_state_dict(path)[0]


def _in_folder(folder: Path) -> Path:
    for name in NAMES:
        for candidate in (folder / f"{name}.index.json", folder / name):
            if candidate.is_file():
                return candidate
    inner = sorted(item for item in folder.glob(SUBFOLDERS) if item.is_dir())
    if len(inner) == 1:
        return _in_folder(inner[0])
    found = ", ".join(item.name for item in inner) or ", ".join(sorted(item.name for item in folder.iterdir())[:6])
    accepted = f"one of the folders in it: {found}" if inner else ACCEPTED
    raise SettingError(f"model folder {folder.name}", found or "an empty folder", accepted)


def _read_shards(index: Path) -> dict[str, Tensor]:
    name = f"index {index.name}"
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(places.values()))
        plain = bool(files) and all(Path(file).name == file and file.endswith(".safetensors") for file in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError(name, f"unreadable: {error!r}", "JSON with a weight_map of key to shard") from error
    if not plain:
        raise SettingError(name, files[:4], "names of .safetensors files in the same folder")
    missing = [file for file in files if not (index.parent / file).is_file()]
    if missing:
        found = f"{len(missing)} of {len(files)} shards missing: {', '.join(missing[:4])}"
        raise SettingError(name, found, "all shards in the index's folder; download the missing ones")
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= read_state_dict(index.parent / file)[0]
    absent = [key for key in places if key not in tensors]
    if absent:
        found = f"{len(absent)} keys not in their shards: {', '.join(absent[:4])}"
        raise SettingError(name, found, "shards of one model")
    return tensors
