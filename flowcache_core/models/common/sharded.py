"""Weights of a model that may lie in one file, or in a folder as shards with an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import Found, SettingError, listed, require, shown
from ...reading.json_text import read_object
from ...reading.regular_file import is_file, is_folder
from ...reading.tensors import require_names
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
    return read_sharded(path)[0]


def read_sharded(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """:func:`read_weights` with the text metadata: of the file, or of all shards together."""
    path = Path(path)
    if is_folder(path):
        path = _in_folder(path)
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    return read_state_dict(path)


def _in_folder(folder: Path) -> Path:
    try:
        for name in NAMES:
            for candidate in (folder / f"{name}.index.json", folder / name):
                if candidate.exists():
                    return candidate
        inner = sorted(item for item in folder.glob(SUBFOLDERS) if item.is_dir())
        held = sorted(item.name for item in folder.iterdir())
    except OSError as error:
        raise SettingError(f"model folder {folder.name}", Found(f"unreadable: {error.strerror}"), ACCEPTED) from error
    if len(inner) == 1:
        return _in_folder(inner[0])
    found = listed((item.name for item in inner) if inner else held)
    accepted = f"one of the folders in it: {found}" if inner else ACCEPTED
    raise SettingError(f"model folder {folder.name}", Found(found or "an empty folder"), accepted)


def _read_shards(index: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    name, accepted = f"index {index.name}", "JSON with a weight_map of key to shard"
    places: Any = read_object(index, name, accepted).get("weight_map")
    mapped = isinstance(places, dict) and bool(places)
    require(mapped, name, Found(f"the weight_map {shown(places)}"), accepted)
    require_names(places, name)
    plain = all(isinstance(file, str) and _in_same_folder(file) for file in places.values())
    wrong = [file for file in places.values() if not isinstance(file, str) or not _in_same_folder(file)]
    require(plain, name, wrong[:1], "names of .safetensors files in the same folder")
    files = sorted(set(places.values()))
    missing = [file for file in files if not is_file(index.parent / file)]
    if missing:
        found = Found(f"{len(missing)} of {len(files)} shards missing: {listed(missing)}")
        raise SettingError(name, found, "all shards in the index's folder; download the missing ones")
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] = {}
    for file in files:
        held, said = read_state_dict(index.parent / file)
        foreign = [key for key in held if places.get(key) != file]
        require(not foreign, name, Found(f"{file} also holds {listed(foreign)}"), "shards of one model")
        tensors |= held
        metadata |= said
    absent = [key for key in places if key not in tensors]
    require(not absent, name, Found(f"{len(absent)} keys not in their shards: {listed(absent)}"), "shards of one model")
    return tensors, metadata


def _in_same_folder(file: str) -> bool:
    return Path(file).name == file and file.endswith(".safetensors") and "\\" not in file
