"""Tokens as they are, in the model's dtype or another floating-point one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..spec import KVSpec
from .base import Storage
from .tokens import LayerTokens, Place, Room, Scratch, copy_runs, move_left


@dataclass(frozen=True)
class Plain(Storage):
    """Floating-point numbers; in the model's own dtype nothing is lost."""

    name: ClassVar[str] = "plain"

    def tokens(self, spec: KVSpec, room: Room, place: Place, scratch: Scratch) -> LayerTokens:
        return PlainTokens(spec, room, place)


class PlainTokens(LayerTokens):
    """One preallocated buffer each for keys and values, so what a chunk may attend to is a view of it."""

    def __init__(self, spec: KVSpec, room: Room, place: Place) -> None:
        shape = (spec.branches, spec.batch, spec.kv_heads, room.capacity, spec.head_dim)
        self.keys, self.values = (place.empty(shape, place.dtype) for _ in range(2))
        self._place, self._block = place, room.largest_chunk

    def slot(self, branches: range, start: int, end: int) -> tuple[Tensor, Tensor]:
        keys, values = (t[branches.start : branches.stop, ..., start:end, :] for t in (self.keys, self.values))
        return keys, values

    def read(self, branches: range, start: int, end: int, heads: slice = slice(None)) -> tuple[Tensor, Tensor]:
        part = slice(branches.start, branches.stop)
        keys, values = (t[part, :, heads, start:end].flatten(0, 1) for t in (self.keys, self.values))
        return self._for_model(keys), self._for_model(values)

    def clean_tokens(self, branch: int, name: str, device: torch.device | None) -> Tensor:
        stored: Tensor = (self.keys if name == "keys" else self.values)[branch, ..., : self.clean, :]
        return stored if device is None else stored.to(device)

    def keep(self, branch: int, kept: Tensor, active: int) -> None:
        after = kept.shape[-1]
        for stored in (self.keys[branch], self.values[branch]):
            raw = gatherable(stored)
            raw[..., :after, :] = raw.gather(-2, kept.unsqueeze(-1).expand(*kept.shape, raw.shape[-1]))
            move_left(raw, self.clean, active, self.clean - after, self._block)

    def replace_values(self, branch: int, values: Tensor) -> None:
        self.values[branch, ..., : values.shape[-2], :] = values.to(self.values)

    def shrink(self, clean: int) -> None:
        self.clean = clean

    def commit(self, count: int, active: int) -> None:
        self.clean += count

    def held(self, branch: int, span: slice) -> Iterator[Tensor]:
        for stored in (self.keys, self.values):
            yield gatherable(stored)[branch, ..., span, :]

    def take_over(self, branch: int, span: slice, own: Tensor | None, parts: Iterator[Tensor]) -> None:
        for held, part in zip(self.held(branch, span), parts):  # in this order: no part too many is taken
            # By a mask over all that is kept: how many tokens it is, only the device knows.
            held.copy_(part if own is None else torch.where(own.unsqueeze(-1), part, held))

    def tensors(self) -> Iterator[Tensor]:
        yield from (self.keys, self.values)

    def _for_model(self, stored: Tensor) -> Tensor:
        if self._place.apart:
            moved = torch.empty(stored.shape, dtype=stored.dtype, device=self._place.model_device)
            copy_runs(moved, stored)
            stored = moved
        return stored.to(self._place.model_dtype)


def gatherable(stored: Tensor) -> Tensor:
    """fp8 can neither be gathered nor selected; its bytes can."""
    return stored.view(torch.uint8) if stored.element_size() == 1 else stored
