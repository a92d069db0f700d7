"""Kernels, device syncs and copies between devices of whatever runs inside, each with the place that asked for it.

Works on real and on fake tensors of any device. The CPU counts as the host: what it computes is no kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CORE = str(Path(__file__).resolve().parents[1])
OWN = str(Path(__file__).resolve().parent)
CARRIER = str(Path(CORE) / "background.py")
"""Copies for whoever asks."""

# Operations whose result the host must see before it can go on: a number, or a shape that depends on values.
HOST_READS = frozenset(
    f"aten::{name}"
    for name in (
        "_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "_unique", "_unique2", "unique_dim",
        "unique_consecutive", "is_nonzero", "repeat_interleave",
    )
)  # fmt: skip
# Operations that name a tensor or reserve memory and run nothing.
NO_KERNEL = frozenset(
    f"aten::{name}"
    for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view",
                 "_reshape_alias", "detach", "alias", "lift_fresh", "resize_", "set_")
)  # fmt: skip


@dataclass(frozen=True)
class Sync:
    """The host waited for the device. ``site``: file, within the core, and function that asked."""

    name: str
    site: str


@dataclass(frozen=True)
class Copy:
    """Values went from one device to another. blocking: the host waited until they had arrived."""

    source: str
    target: str
    bytes: int
    blocking: bool
    site: str

    @property
    def direction(self) -> str:
        return f"{self.source} to {self.target}"


@dataclass
class Count:
    """What was counted; lists in the order in which things happened."""

    kernels: int = 0
    syncs: list[Sync] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)

    def mark(self) -> tuple[int, int, int]:
        """Where it stands, for :meth:`since`."""
        return self.kernels, len(self.syncs), len(self.copies)

    def since(self, mark: tuple[int, int, int]) -> Count:
        kernels, syncs, copies = mark
        return Count(self.kernels - kernels, self.syncs[syncs:], self.copies[copies:])

    def __iadd__(self, other: Count) -> Count:
        self.kernels += other.kernels
        self.syncs += other.syncs
        self.copies += other.copies
        return self


class Traffic(TorchDispatchMode):
    """Use as a context manager; ``count`` grows as operations run. ``host``: the device type that is the host's.

    ignored: files whose frames are not what asked, those that stand in for a device, say.
    """

    def __init__(self, host: str = "cpu", ignored: Sequence[str] = ()) -> None:
        super().__init__()
        self.count, self.host = Count(), host
        self.ignored = (OWN, CARRIER, *ignored)
        self.hears = True

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.hears:
            self.note(func, args, kwargs, out)
        return out

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """What runs inside is not counted."""
        self.hears = False
        try:
            yield
        finally:
            self.hears = True

    def note(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        name = func._schema.name
        if name in ("aten::_to_copy", "aten::copy_"):
            target, source = (out, args[0]) if name == "aten::_to_copy" else (args[0], args[1])
            if target.device != source.device:
                asked = kwargs.get("non_blocking", args[2] if name == "aten::copy_" and len(args) > 2 else False)
                return self.copied(source, target.device, source.numel() * target.element_size(), not asked)
        if name in ("aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"):
            self.indexed(args[0], [index for index in args[1] if index is not None])
        tensors = [*_tensors(args), *_tensors(list(kwargs.values())), *_tensors([out])]
        if all(tensor.device.type == self.host for tensor in tensors):
            return None
        if name in HOST_READS:
            self.count.syncs.append(Sync(name.removeprefix("aten::"), self.site()))
        if name not in NO_KERNEL and not _is_view(func):
            self.count.kernels += 1
        return None

    def indexed(self, tensor: Tensor, indices: Sequence[Tensor]) -> None:
        """An index of true and false has a length that the host must know; one that lies elsewhere is moved."""
        for index in indices:
            if index.dtype in (torch.bool, torch.uint8) and index.device.type != self.host:
                self.count.syncs.append(Sync("boolean index", self.site()))
            if index.device != tensor.device:
                self.copied(index, tensor.device, index.numel() * index.element_size(), True)

    def copied(self, source: Tensor, target: torch.device, size: int, blocking: bool) -> None:
        site = self.site()
        self.count.copies.append(Copy(source.device.type, target.type, size, blocking, site))
        if blocking:  # either way: torch waits for the stream that the copy is in
            way = "to" if target.type == self.host else "from"
            self.count.syncs.append(Sync(f"copy {way} the host", site))

    def site(self) -> str:
        """The innermost place in the core, or outside of it where the core is not at work."""
        frame, outside = sys._getframe(1), "?"
        while frame is not None:
            path, function = frame.f_code.co_filename, frame.f_code.co_name
            if function.startswith("<"):  # a comprehension: part of the function around it, in later Pythons anyway
                pass
            elif path.startswith(CORE) and not path.startswith(self.ignored):
                return f"{Path(path).relative_to(CORE).as_posix()} {function}"
            elif outside == "?" and "torch" not in Path(path).parts and not path.startswith((*self.ignored, "<")):
                outside = f"{Path(path).name} {function}"
            frame = frame.f_back  # type: ignore[assignment]
        return outside


def by_site(count: Count) -> dict[tuple[str, str], list[Copy]]:
    """The copies by direction and place."""
    found: dict[tuple[str, str], list[Copy]] = {}
    for copy in count.copies:
        found.setdefault((copy.direction, copy.site), []).append(copy)
    return found


@cache
def _is_view(func: Any) -> bool:
    return any(value.alias_info is not None and not value.alias_info.is_write for value in func._schema.returns)


def _tensors(values: Sequence[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
