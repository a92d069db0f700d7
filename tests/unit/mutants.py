"""Files changed at random in the ways that files go wrong, all from fixed seeds.

Bytes anywhere; the JSON in them; the pickle and the archive around it; the file as a thing of the file system.
"""

from __future__ import annotations

import io
import json
import os
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

LOOP: dict[str, Any] = {}
LOOP["model"] = LOOP
DEEP: Any = "x"
for _ in range(200):
    DEEP = [DEEP]

# Values that are of the wrong kind somewhere, each as a text of JSON.
NASTY = (
    "null", "true", "-1", "0", "1.5", "1e400", "1e308", "-1e-400", "NaN", "-Infinity", str(10**400), str(2**70),
    str(2**63), "1" * 5000, '""', json.dumps("x" * 10_000), '"\\ud800"', '"\\u0000"', "[]", "[5]", "{}", '{"a": 1}',
    "[" * 40 + "]" * 40, "[" * 10_000 + "]" * 10_000, '{"name": "schedule"}', '{"name": ["never"]}', '["a", "b"]',
)  # fmt: skip


def bytes_changed(content: bytes, draw: random.Random) -> bytes:
    """One small accident: bits turned, a piece cut, doubled, moved, zeroed, or noise put in."""
    size = len(content)
    place = draw.randrange(size) if draw.random() < 0.5 else draw.randrange(min(size, 600))
    length = draw.choice((1, 2, 8, 64, 4096))
    before, piece, after = content[:place], content[place : place + length], content[place + length :]
    noise = bytes(draw.randrange(256) for _ in range(length))
    bit = bytes([piece[0] ^ (1 << draw.randrange(8))]) + piece[1:]
    changed = draw.choice((bit, b"", piece * 2, bytes(len(piece)), b"\xff" * len(piece), noise + piece, noise))
    return draw.choice((before + changed + after, before + changed + after, before, content + noise))


def paths_of(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_of(inner, (*at, key))


def json_changed(content: bytes, draw: random.Random) -> bytes:
    """One value replaced, removed, doubled or renamed; or the text as a whole spoilt."""
    value = json.loads(content)
    every = list(paths_of(value))
    path = draw.choice(every[1:] or every)
    mark = "@here@"
    if path:
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        way = draw.random()
        if way < 0.15 and isinstance(inner, dict):
            inner[draw.choice(("", "x" * 10_000, "__proto__", "a.b", "\x1b[31m"))] = inner.pop(path[-1])
        elif way < 0.25:
            del inner[path[-1]]
        else:
            inner[path[-1]] = mark
    text = json.dumps(value).replace(json.dumps(mark), draw.choice(NASTY))
    spoilt = draw.random()
    if spoilt < 0.05:
        return text.encode("utf-16")
    if spoilt < 0.1:
        return b"\xef\xbb\xbf" + text.encode()
    if spoilt < 0.15:
        return text[:-1].encode() + b', "schema": 1, "schema": 1}'
    return text.encode()


def safetensors_changed(content: bytes, draw: random.Random) -> bytes:
    """The header's JSON changed, its length put right or not."""
    length = int.from_bytes(content[:8], "little")
    header = json_changed(content[8 : 8 + length], draw)
    said = len(header) if draw.random() < 0.9 else draw.choice((0, 1, 2**63, len(header) + 5, 10**8))
    return said.to_bytes(8, "little") + header + content[8 + length :]


def pickled(content: object, old: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=not old)
    return stream.getvalue()


def archive_changed(content: bytes, draw: random.Random) -> bytes:
    """The pickle or another entry of an archive changed, its checksum right; or the archive itself bent."""
    source = zipfile.ZipFile(io.BytesIO(content))
    stream = io.BytesIO()
    way = draw.choice(("pickle", "pickle", "pickle", "entry", "packed", "twice", "without", "named"))
    chosen = draw.choice(source.namelist())
    with zipfile.ZipFile(stream, "w") as target:
        for entry in source.infolist():
            data, name, how = source.read(entry), entry.filename, zipfile.ZIP_STORED
            if way == "pickle" and name.endswith(("data.pkl", ".npy")):
                data = bytes_changed(data, draw)
            elif name == chosen and way == "entry":
                data = bytes_changed(data or b"x", draw)
            elif name == chosen and way == "packed":
                data, how = bytes(50 * 2**20), zipfile.ZIP_DEFLATED
            elif name == chosen and way == "named":
                name = draw.choice(("../" + name, name + "x", "a/" + name, "x" * 1000, name.upper()))
            if not (name == chosen and way == "without"):
                target.writestr(name, data, how)
            if name == chosen and way == "twice":
                target.writestr(name.swapcase(), data, how)
    return stream.getvalue()


def odd_contents(weights: dict[str, torch.Tensor]) -> dict[str, object]:
    """What somebody may have saved with torch in place of weights."""
    name, first = next((key, value) for key, value in weights.items() if value.dim() == 2)
    odd: dict[str, Any] = {
        "meta": first.to("meta"), "sparse": first.to_sparse(), "expanded": torch.zeros(1).expand(first.shape),
        "huge": torch.zeros(1).expand(2**15, 2**15), "bool": first > 0, "int8": first.to(torch.int8),
        "int64": first.long(), "complex": first.to(torch.complex64), "float64": first.double(),
        "scalar": torch.tensor(1.0), "nothing": torch.zeros(0), "quantised": torch.quantize_per_tensor(
            first, 0.1, 0, torch.qint8), "transposed": first.T, "parameter": torch.nn.Parameter(first),
        "seven dimensions": first.reshape(1, 1, 1, 1, 1, *first.shape), "number": 3, "text": "x" * 10_000,
        "list": [first], "nested": torch.nested.nested_tensor([first[0], first[0][:2]]),
        "csr": first.to_sparse_csr(), "none": None,
    }  # fmt: skip
    contents: dict[str, object] = {what: {**weights, name: value} for what, value in odd.items()}
    blocks = {f"blocks.{number}.x": torch.zeros(1) for number in range(3_000)}
    contents |= {
        "loop": LOOP, "loop of two": {"ema": {"model": LOOP}}, "deep": {**weights, "deep": DEEP},
        "list alone": [weights], "tensor alone": first, "text alone": "weights", "empty": {},
        "empty inside": {"generator": {}},
        "keys of numbers": dict(enumerate(weights.values())), "keys of bytes": {b"a": first},
        "keys of tuples": {("a", 1): first}, "long key": {**weights, "k" * 10_000: first},
        "many blocks": {**weights, **blocks}, "many keys": {f"k{i}": 0 for i in range(30_000)},
        "set": {"a": {1, 2}}, "bytes": {"a": b"x" * 100}, "bytearray": {"a": bytearray(10)}, "complex": {"a": 1j},
        "device": {"a": torch.device("cuda")}, "size": {"a": torch.Size([1])}, "dtype": {"a": torch.float32},
        "storage": {"a": first.untyped_storage()}, "a module": torch.nn.Linear(2, 2),
        "a function": torch.nn.functional.relu,
        "an exception": ValueError("x"), "a path": Path("x"), "nested twelve deep": _wrapped(weights, 12),
        "nested twice": _wrapped(weights, 2),
    }  # fmt: skip
    return contents


def _wrapped(content: object, depth: int) -> object:
    return content if depth == 0 else {"model": _wrapped(content, depth - 1)}


def odd_paths(folder: Path, content: bytes, suffix: str) -> Iterator[tuple[str, Path]]:
    """Things of the file system in place of a file."""
    made: dict[str, Callable[[Path], object]] = {
        "folder": Path.mkdir,
        "empty": lambda path: path.write_bytes(b""),
        "absent": lambda path: None,
        "web page": lambda path: path.write_bytes(b"<!DOCTYPE html><html>"),
        "git lfs": lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "gguf": lambda path: path.write_bytes(b"GGUF\3\0\0\0" + bytes(100)),
    }
    if os.name != "nt":
        made |= {
            "loop of links": lambda path: path.symlink_to(path),
            "dead link": lambda path: path.symlink_to(folder / "nowhere"),
            "pipe": os.mkfifo,
            "device": lambda path: path.symlink_to("/dev/null"),
            "not readable": lambda path: (path.write_bytes(content), path.chmod(0)),
        }
    for name, make in made.items():
        path = folder / f"{name}{suffix}"
        make(path)
        yield name, path
    for name in ("x" * 300, "a\0b", "x" * 5000):
        yield f"name {name[:3]!r}", folder / f"{name}{suffix}"
    if os.name == "posix" and os.uname().sysname == "Linux":
        path = folder / os.fsdecode(b"\xff\xfe" + suffix.encode())
        path.write_bytes(content[: len(content) // 2])
        yield "name that is no text", path
