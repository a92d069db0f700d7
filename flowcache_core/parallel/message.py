"""What goes between a run's starter and its ranks: settings, events and tensors as one safetensors document.

Settings are dataclasses of this package, so a message names a class by its module below the package, and nothing else
can be made by reading one. The package may have another name on the other side (a host imports it by its folder).
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence, Set
from typing import Any, BinaryIO

import torch
from safetensors.torch import load, save
from torch import Tensor

from ..errors import SettingError, require
from .errors import RankError

PACKAGE = __name__.removesuffix(".parallel.message")
LENGTH = 8  # bytes before a message that say how long it is
LONGEST = 1 << 40
KIND = "@"


def to_bytes(value: object) -> bytes:
    """``value`` for :func:`from_bytes`: None, numbers, texts, tensors, dtypes, containers, and dataclasses of this
    package by the fields that make them. SettingError naming a class that is of none of these kinds."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_plain(value, tensors))
    return save(tensors, {"value": text})


def from_bytes(data: bytes) -> Any:
    """What :func:`to_bytes` was given; tensors on the CPU, sequences as tuples or lists, mappings as dicts."""
    length = int.from_bytes(data[:LENGTH], "little")
    header = json.loads(data[LENGTH : LENGTH + length])
    return _made(json.loads(header["__metadata__"]["value"]), load(data))


def write(stream: BinaryIO, value: object) -> None:
    """One message into a stream of them."""
    data = to_bytes(value)
    stream.write(len(data).to_bytes(LENGTH, "little") + data)
    stream.flush()


def read(stream: BinaryIO) -> Any:
    """The next message. EOFError where the stream ends, RankError where it holds none."""
    length = int.from_bytes(_exactly(stream, LENGTH), "little")
    if length > LONGEST:
        raise RankError("what came from the other process is no message")
    return from_bytes(_exactly(stream, length))


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = stream.read(count - len(data))  # of an unbuffered stream, whatever is there
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _plain(value: object, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {KIND: "tensor", "is": name}
    if isinstance(value, torch.dtype):
        return {KIND: "dtype", "is": str(value).removeprefix("torch.")}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        own = kind.__module__.startswith(f"{PACKAGE}.") and "<" not in kind.__qualname__
        require(own, "several GPUs", f"{kind.__module__}.{kind.__qualname__}", "what FlowCache brings along itself")
        module = kind.__module__.removeprefix(f"{PACKAGE}.")
        fields = {f.name: _plain(getattr(value, f.name), tensors) for f in dataclasses.fields(value) if f.init}
        return {KIND: "made", "class": f"{module}:{kind.__qualname__}", "is": fields}
    if isinstance(value, Mapping):
        return {KIND: "dict", "is": [[_plain(key, tensors), _plain(one, tensors)] for key, one in value.items()]}
    if isinstance(value, Set):
        return {KIND: "set", "is": [_plain(one, tensors) for one in sorted(value)]}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | range):
        return {KIND: "list" if isinstance(value, list) else "tuple", "is": [_plain(one, tensors) for one in value]}
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    raise SettingError("several GPUs", name, "settings, numbers, texts and tensors")


def _made(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    content = value["is"]
    match value[KIND]:
        case "tensor":
            return tensors[content]
        case "dtype":
            return getattr(torch, content)
        case "dict":
            return {_made(key, tensors): _made(one, tensors) for key, one in content}
        case "set":
            return frozenset(_made(one, tensors) for one in content)
        case "list":
            return [_made(one, tensors) for one in content]
        case "tuple":
            return tuple(_made(one, tensors) for one in content)
        case _:
            return _class_of(value["class"])(**{name: _made(one, tensors) for name, one in content.items()})


def _class_of(name: str) -> Any:
    """A dataclass of this package."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(f"{PACKAGE}.{module}")
    for part in path.split("."):
        found = getattr(found, part)
    own = isinstance(found, type) and dataclasses.is_dataclass(found) and found.__module__ == f"{PACKAGE}.{module}"
    if not own:
        raise RankError(f"{name} is no settings class")
    return found
