"""A .safetensors file, its header read and bounded before the library maps the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import Found, SettingError, listed, require, shown
from .json_text import parse_object
from .limits import JSON_BYTES
from .tensors import require_names, require_shape

LENGTH = 8  # bytes before the header that say how long it is
METADATA = "__metadata__"
# The format's names of what torch calls otherwise; all of them take whole bytes.
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool, "U8": torch.uint8,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64,
}  # fmt: skip
if hasattr(torch, "float8_e8m0fnu"):  # torch 2.7
    DTYPES = {**DTYPES, "F8_E8M0": torch.float8_e8m0fnu}


def looks_like_safetensors(start: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes that begins so has a header of this format."""
    length = int.from_bytes(start[:LENGTH], "little")
    return len(start) > LENGTH and start[LENGTH : LENGTH + 1] == b"{" and 2 <= length <= size - LENGTH


def read_safetensors(path: Path, size: int, field: str, accepted: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, on the CPU and mapped from the file, and text metadata. SettingError naming what is wrong with it."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(LENGTH), "little")
            long = Found(f"unreadable: a header of {length} bytes")
            require(length <= JSON_BYTES, field, long, f"{accepted}, whose header has at most {JSON_BYTES} bytes")
            header = file.read(length)
    except OSError as error:
        raise SettingError(field, Found(f"unreadable: {error.strerror or error}"), accepted) from error
    if len(header) < length:
        raise SettingError(field, Found("unreadable: cut short within its header"), accepted)
    entries = parse_object(header, f"{field}, header", accepted)
    metadata = entries.pop(METADATA, {})
    text = isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    require(text, f"{field}, header", Found(f"metadata {shown(metadata)}"), "metadata of texts")
    held = size - LENGTH - length
    claimed = sum(_bytes(key, entry, field) for key, entry in entries.items())
    if claimed != held:
        reason = "cut short" if claimed > held else "more data than its header names"
        found = Found(f"unreadable: {reason}: {held} bytes of data, {claimed} in the header")
        raise SettingError(field, found, accepted)
    require_names(entries, field)
    try:
        with safe_open(path, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in entries}, dict(metadata)
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError, KeyError) as error:
        raise SettingError(field, Found(f"unreadable: {listed(str(error).splitlines(), 1)}"), accepted) from error


def _bytes(key: str, entry: Any, field: str) -> int:
    """How many bytes an entry's shape and dtype need; SettingError when it is no entry or its place differs."""
    known = isinstance(entry, dict) and {"dtype", "shape", "data_offsets"} == set(entry)
    require(known, f"{field}, header of {key}", entry, "dtype, shape and data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise SettingError(f"{field}, dtype of {key}", entry["dtype"], ", ".join(DTYPES))
    shape = require_shape(f"{field}, shape of {key}", entry["shape"])
    needed = math.prod(shape) * dtype.itemsize
    offsets = entry["data_offsets"]
    whole = isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int and n >= 0 for n in offsets)
    fits = whole and offsets[1] - offsets[0] == needed
    require(fits, f"{field}, data_offsets of {key}", offsets, f"two numbers that are {needed} bytes apart")
    return needed
