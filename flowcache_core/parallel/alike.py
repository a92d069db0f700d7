"""Whether all ranks are about to do the same: settings, inputs and weights compared by hash before the first step."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import Found, require
from .errors import answered
from .mesh import Mesh


def digest(value: object) -> bytes:
    """32 bytes that say what ``value`` is: dataclasses by their fields, modules by their parameters, tensors by shape,
    dtype and two sums over their bits, containers by their content, everything else by its text."""
    return hashlib.sha256("\n".join(_said(value)).encode()).digest()


def _said(value: object) -> list[str]:
    if isinstance(value, Tensor):
        return [f"{tuple(value.shape)} {value.dtype} {_sums(value)}"]
    if isinstance(value, nn.Module):
        # All parameters' sums in one reading of the device.
        named, config = sorted(value.state_dict().items()), _said(getattr(value, "config", None))
        sums = torch.stack([_sums_on_device(tensor) for _, tensor in named]).tolist() if named else []
        return [*config, *(f"{n} {tuple(t.shape)} {t.dtype} {s}" for (n, t), s in zip(named, sums, strict=True))]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field for field in dataclasses.fields(value) if field.init and field.compare]
        return [type(value).__name__, *_items((field.name, getattr(value, field.name)) for field in fields)]
    if isinstance(value, Mapping):
        return ["{", *_items((repr(key), value[key]) for key in sorted(value, key=repr)), "}"]
    if isinstance(value, Set):
        return ["{", *sorted(repr(item) for item in value), "}"]
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return ["[", *_items(("", item) for item in value), "]"]
    if value is None or isinstance(value, str | bytes | int | float | torch.dtype | torch.device | Path):
        return [repr(value)]
    return [getattr(value, "__qualname__", type(value).__qualname__)]


def _items(pairs: object) -> list[str]:
    return [f"{name}={line}" for name, item in pairs for line in _said(item)]  # type: ignore[attr-defined]


def _sums(tensor: Tensor) -> list[int]:
    return [] if tensor.is_meta else [int(number) for number in _sums_on_device(tensor).tolist()]


def _sums_on_device(tensor: Tensor) -> Tensor:
    """int64 ``[2]``: the sum of all bytes' words, and of every seventh."""
    flat = tensor.detach().contiguous().flatten()
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(flat.element_size())
    words = (
        torch.view_as_real(flat).flatten().view(torch.int32) if kind is None or flat.is_complex() else flat.view(kind)
    )
    return torch.stack([words.sum(dtype=torch.int64), words[::7].sum(dtype=torch.int64)])


def require_alike(mesh: Mesh, things: Mapping[str, object]) -> None:
    """SettingError, on every rank, when ``things`` (name -> value) differ between ranks; the names are said."""
    if mesh.shape.size == 1:
        return
    own = torch.tensor([list(digest(value)) for value in things.values()], dtype=torch.uint8)
    every = [torch.empty_like(own) for _ in range(mesh.shape.size)]
    with answered(mesh.timeout):
        dist.all_gather(every, own)
    for rank, theirs in enumerate(every):
        same = (theirs == every[0]).all(1).tolist()
        others = [name for name, equal in zip(things, same, strict=True) if not equal]
        found = Found(f"other {' and '.join(others)} on rank {rank} than on rank 0")
        require(not others, "ranks", found, "the same model, settings, prompts and noise on all ranks")
