"""Keys and values of one layer, whatever they are stored as: what the cache asks of them.

Tokens stand in the order ``[clean | active]``, clean ones (of finished chunks) oldest first. Who they are is
:class:`..layout.KVLayout`'s business; here lie the values.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...background import streamed


@dataclass(frozen=True)
class Room:
    """How many tokens a layer must hold: at once, of active chunks at once, of the chunks in turn.

    ``shrinks``: whether tokens may ever be dropped. ``alike``: whether all branches and heads drop the same ones.
    """

    capacity: int
    active: int
    chunks: tuple[int, ...]
    shrinks: bool
    alike: bool

    @property
    def largest_chunk(self) -> int:
        return max(self.chunks)


@dataclass(frozen=True)
class Place:
    """Where a layer is stored and where it is used. ``dtype``: of what is stored as it is."""

    dtype: torch.dtype
    device: torch.device
    model_dtype: torch.dtype
    model_device: torch.device

    @property
    def apart(self) -> bool:
        return self.device != self.model_device

    @property
    def as_used(self) -> bool:
        """Whether what is stored as it is needs no copy to be used."""
        return not self.apart and self.dtype == self.model_dtype

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Room on the device of the storage; pinned where it is the host's beside a CUDA model."""
        pinned = self.device.type == "cpu" and self.model_device.type == "cuda"
        return torch.empty(tuple(shape), dtype=dtype, device=self.device, pin_memory=pinned)


class Scratch:
    """Buffers that every read of a cache uses again: what it reads into is allocated once and grows to the largest."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Room of ``shape`` under ``name``; what was taken under it before is overwritten."""
        count, held = math.prod(shape), self._held.get(name)
        if held is None or held.numel() < count or held.dtype != dtype or held.device != device:
            self._held.pop(name, None)  # before the new one is made: never both
            held = self._held[name] = torch.empty(count, dtype=dtype, device=device)
        return held[:count].view(*shape)

    def release(self) -> None:
        self._held.clear()

    @property
    def bytes(self) -> int:
        return sum(held.nbytes for held in self._held.values())


class LayerTokens(ABC):
    """Tensors of one layer; ``clean`` tokens are at present those of finished chunks."""

    clean: int = 0

    @abstractmethod
    def slot(self, branches: range, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Where keys and values of active tokens go: views ``[branches, batch, kv_heads, end - start, head_dim]``."""

    @abstractmethod
    def read(self, branches: range, start: int, end: int, heads: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Keys and values ``[branches * batch, heads, end - start, head_dim]`` as the model takes them.

        Valid until the next call of any layer.
        """

    @abstractmethod
    def clean_tokens(self, branch: int, name: str, device: torch.device | None) -> Tensor:
        """``keys`` or ``values`` of all clean tokens of a branch ``[batch, kv_heads, clean, head_dim]``, moved to
        ``device`` unless it is None."""

    @abstractmethod
    def keep(self, branch: int, kept: Tensor, active: int) -> None:
        """Of a branch's clean tokens leave ``kept [batch, kv_heads, n]``, ascending; active ones move up to them."""

    def replace_values(self, branch: int, values: Tensor) -> None:
        """Store ``values [batch, kv_heads, n, head_dim]`` instead of those of the first clean tokens of a branch."""
        raise NotImplementedError("packed values are not made anew")

    @abstractmethod
    def shrink(self, clean: int) -> None:
        """So many clean tokens are left: every branch has been asked to :meth:`keep` them."""

    @abstractmethod
    def commit(self, count: int, active: int) -> Tensor | None:
        """The first ``count`` of the ``active`` tokens are finished. Returns whether the keys and the values that were
        packed are finite, bool ``[2]``; None where nothing was packed."""

    @abstractmethod
    def held(self, branch: int, span: slice) -> Iterator[Tensor]:
        """What a branch holds of its clean tokens ``span``, or of more, as views of what is stored."""

    @abstractmethod
    def take_over(self, branch: int, span: slice, own: Tensor | None, parts: Iterator[Tensor]) -> None:
        """Take what :meth:`held` gave of another branch that differs in the tokens ``own`` alone (bool, of ``span``;
        None for all of them). Only where heads and branches hold the same tokens. Of ``parts``, takes its own alone.
        """

    def forget(self) -> None:
        """No token is held any more."""
        self.clean = 0

    @abstractmethod
    def tensors(self) -> Iterator[Tensor]:
        """All that is held."""

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors())


def copy_runs(target: Tensor, source: Tensor) -> None:
    """``[..., tokens, d]`` run by run: a contiguous run of pinned memory is copied by the device, in its order; others
    the host would gather first, from memory that a copy may still be on its way to."""
    if target.dim() == 2:
        away = source.device if source.device.type != "cpu" else target.device
        target.copy_(source, non_blocking=streamed(away))
        return
    for to, given in zip(target, source, strict=True):
        copy_runs(to, given)


def move_left(tokens: Tensor, start: int, length: int, shift: int, block: int) -> None:
    """Move ``length`` tokens from ``start`` on by ``shift`` to the left, within ``tokens`` ``[..., tokens, d]``.

    Source and target overlap, so it goes from the left in blocks, each copied out first: at most ``block`` tokens of
    extra memory.
    """
    for first in range(start, start + length, block):
        last = min(first + block, start + length)
        tokens[..., first - shift : last - shift, :] = tokens[..., first:last, :].clone()
