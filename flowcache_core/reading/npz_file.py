"""Named tables of floats out of a numpy archive (.npz), each checked by its header before it is read."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from ..errors import Found, SettingError, require, shown
from .limits import TABLE_BYTES
from .regular_file import require_file

SUFFIX = ".npy"
HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_tables(path: Path, wanted: Mapping[str, tuple[int, ...]], field: str, accepted: str) -> dict[str, np.ndarray]:
    """The arrays called so, of these shapes and of floats. SettingError naming what the file holds instead."""
    require_file(path, field, accepted)
    try:
        with zipfile.ZipFile(path) as archive:
            held = sum(entry.file_size for entry in archive.infolist())
            require(held <= TABLE_BYTES, field, Found(f"{held} bytes, unpacked"), f"{accepted}: {TABLE_BYTES} at most")
            headers = {name.removesuffix(SUFFIX): _header(archive, name) for name in archive.namelist()}
            found = ", ".join(f"{name} {header}" for name, header in headers.items()) or "nothing"
            fits = set(wanted) == set(headers) and all(headers[name].holds(shape) for name, shape in wanted.items())
            require(fits, field, Found(found), accepted)
            return {name: _table(archive, name, headers[name]) for name in wanted}
    except SettingError:
        raise
    except Exception as error:  # zipfile's and numpy's readers raise some ten kinds
        raise SettingError(field, Found(f"unreadable: {shown(str(error))}"), accepted) from error


@dataclass(frozen=True)
class _Header:
    """What an array says of itself."""

    shape: tuple[int, ...]
    columns_first: bool
    dtype: np.dtype

    def holds(self, shape: tuple[int, ...]) -> bool:
        return self.shape == shape and self.dtype.kind == "f" and self.dtype.itemsize <= 8

    def __str__(self) -> str:
        kind = "" if self.dtype.kind == "f" else f" of {self.dtype}"
        return " x ".join(map(str, self.shape)) + kind


def _header(archive: zipfile.ZipFile, name: str) -> _Header:
    with archive.open(name) as file:
        version = npy.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"{name} is of format {version}")
        header = _Header(*HEADERS[version](file))
        if header.dtype.hasobject:
            raise ValueError(f"{name} holds objects")
        return header


def _table(archive: zipfile.ZipFile, name: str, header: _Header) -> np.ndarray:
    with archive.open(name + SUFFIX) as file:
        HEADERS[npy.read_magic(file)](file)
        wanted = math.prod(header.shape) * header.dtype.itemsize
        data = file.read(wanted + 1)
    if len(data) != wanted:
        raise ValueError(f"{name} has {len(data)} bytes, not {wanted}")
    return np.frombuffer(data, header.dtype).reshape(header.shape, order="F" if header.columns_first else "C")
