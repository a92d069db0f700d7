"""Who holds how much of a device's memory, at every moment: one entry per storage, from its making to its end."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ACTIVATIONS = "activations"
BLOCK = 512
"""Bytes in which CUDA's allocator hands memory out; the CPU is taken to hand out what is asked for."""


@dataclass
class Peak:
    """The most bytes of one device, and whose they were at that moment."""

    bytes: int = 0
    parts: dict[str, int] = field(default_factory=dict)


class Ledger(TorchDispatchMode):
    """Use as a context manager: everything made inside is entered, under ``activations`` unless claimed.

    live: bytes by (device, part). What a kernel takes for itself while it runs is not seen, nor what an allocator loses
    between its blocks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: Counter[tuple[str, str]] = Counter()
        self.totals: Counter[str] = Counter()
        self.peaks: dict[str, Peak] = {}
        self._entries: dict[int, list[Any]] = {}  # storage -> device, bytes, part

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            self._enter(tensor, ACTIVATIONS)
        return out

    def claim(self, part: str, tensors: Iterable[Tensor]) -> None:
        """These belong to ``part`` from now on."""
        for tensor in tensors:
            key = self._enter(tensor, part)
            entry = self._entries.get(key)
            if entry is not None and entry[2] != part:
                self.live[entry[0], entry[2]] -= entry[1]
                self.live[entry[0], part] += entry[1]
                entry[2] = part

    def restart(self) -> None:
        """Peaks begin again from what is held now."""
        self.peaks.clear()
        for device in list(self.totals):
            self._reach(device)

    @contextmanager
    def measured(self) -> Iterator[Counter[str]]:
        """Yields, filled at the end: by how many bytes each device rises above what was held at the beginning."""
        before, peaks, rise = Counter(self.totals), self.peaks, Counter[str]()
        self.peaks = {}
        try:
            yield rise
        finally:
            inside, self.peaks = self.peaks, peaks
            for device, peak in inside.items():
                rise[device] = peak.bytes - before[device]
                if peak.bytes > self.peaks.get(device, Peak()).bytes:
                    self.peaks[device] = peak

    def suppose(self, rise: Mapping[str, int]) -> None:
        """What was :meth:`measured` happens again, on top of what is held now."""
        for device, size in rise.items():
            self._reach(device, size)

    def _enter(self, tensor: Tensor, part: str) -> int:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._entries:
            device, size = tensor.device.type, storage.nbytes()
            size = size if device == "cpu" else -(-size // BLOCK) * BLOCK
            self._entries[key] = [device, size, part]
            self.live[device, part] += size
            self.totals[device] += size
            weakref.finalize(storage, self._leave, key)
            self._reach(device)
        return key

    def _leave(self, key: int) -> None:
        device, size, part = self._entries.pop(key)
        self.live[device, part] -= size
        self.totals[device] -= size

    def _reach(self, device: str, more: int = 0) -> None:
        total = self.totals[device] + more
        if total > self.peaks.get(device, Peak()).bytes:
            parts = {part: size for (where, part), size in self.live.items() if where == device and size}
            if more:
                parts[ACTIVATIONS] = parts.get(ACTIVATIONS, 0) + more
            self.peaks[device] = Peak(total, parts)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)


def held(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """Every tensor that an object of state reaches through dataclasses, containers and attributes of the core."""
    seen = set() if seen is None else seen
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, str | bytes | int | float | None) or id(value) in seen:
        return
    else:
        seen.add(id(value))
        if isinstance(value, Mapping):
            inner: Iterable[Any] = value.values()
        elif isinstance(value, Iterable) and not hasattr(value, "__dict__"):
            inner = value
        elif type(value).__module__.partition(".")[0] == __name__.partition(".")[0]:
            inner = list(vars(value).values()) if hasattr(value, "__dict__") else ()
        else:
            return
        for one in inner:
            yield from held(one, seen)
