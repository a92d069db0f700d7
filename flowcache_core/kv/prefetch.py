"""K/V that is kept on the host, back on the model's device by the time it is read: the next layer's is copied while
this one computes.

Two buffers, used in turn, hold the K/V of two layers. What a chunk sees of others is copied ahead; its own comes from
the forward that has just written it and never leaves the device for that. Where there is no stream to copy on, the same
copies are made in the same order, at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .layout import KVLayout
from .storage.plain import PlainTokens
from .storage.tokens import LayerTokens, Place, copy_runs


class Lane(Protocol):
    """Where copies run beside the model's work."""

    def run(self, copies: Callable[[], None]) -> None:
        """Make ``copies`` once all that the model has been asked for until now is done; waits for nothing itself."""

    def join(self) -> None:
        """What the model is asked for from now on comes after all copies; waits for nothing itself."""

    def settle(self) -> None:
        """Wait until the host's memory holds all that was written to it."""


class AtOnce:
    """Without streams: what is asked for is done before the next thing is asked for."""

    def run(self, copies: Callable[[], None]) -> None:
        copies()

    def join(self) -> None:
        """All is done."""

    def settle(self) -> None:
        """All is there."""


class SideStream:
    """A stream of its own on a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def run(self, copies: Callable[[], None]) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            copies()

    def join(self) -> None:
        torch.cuda.current_stream(self.device).wait_stream(self.stream)

    def settle(self) -> None:
        torch.cuda.current_stream(self.device).synchronize()


def lane_of(place: Place) -> Lane:
    return SideStream(place.model_device) if place.model_device.type == "cuda" else AtOnce()


@dataclass(frozen=True)
class Wanted:
    """Tokens ``start`` to ``end`` of a layer's branches; from ``own`` on they are those of ``chunk``, which reads."""

    layer: int
    branches: range
    chunk: int
    start: int
    own: int
    end: int


@dataclass(frozen=True)
class Written:
    """Keys and values ``[branches, batch, heads, tokens, head_dim]`` that a layer has just written at ``start``, as
    they are stored but on the model's device."""

    layer: int
    branches: range
    start: int
    kv: tuple[Tensor, Tensor]


class AtHand:
    """Of a cache that lies where it is read, or is unpacked there: nothing is copied ahead. lane: of the model's device
    where the cache lies elsewhere."""

    bytes = 0

    def __init__(self, lane: Lane | None = None) -> None:
        self.lane = lane or AtOnce()

    def note(self, written: Written) -> None:
        """It is where it will be read."""

    def read(self, wanted: Wanted, layers: Sequence[LayerTokens], layouts: Sequence[KVLayout]) -> tuple[Tensor, Tensor]:
        return layers[wanted.layer].read(wanted.branches, wanted.start, wanted.end)

    def drop(self) -> None:
        """Nothing is on its way."""

    def settle(self) -> None:
        """The host is about to look at what is stored."""
        self.lane.settle()

    def release(self) -> None:
        """Nothing is held."""


class Prefetch:
    """Of one cache with plain storage that lies elsewhere than the model. ``taken``: reads that found their history
    there already.
    """

    def __init__(self, place: Place, lane: Lane | None = None) -> None:
        self.place, self.lane = place, lane or lane_of(place)
        self.taken = 0
        self._buffers: list[Tensor | None] = [None, None]
        self._turn = 0
        self._ahead: Wanted | None = None
        self._written: Written | None = None

    def note(self, written: Written) -> None:
        """A layer writes; what was copied ahead of it from there on is not what it was."""
        ahead = self._ahead
        if ahead is not None and ahead.layer == written.layer and written.start < ahead.own:
            self._ahead = None
        self._written = written

    def read(self, wanted: Wanted, layers: Sequence[LayerTokens], layouts: Sequence[KVLayout]) -> tuple[Tensor, Tensor]:
        """Keys and values ``[branches * batch, heads, end - start, head_dim]`` on the model's device, in its dtype;
        the next layer's are on their way then. Valid until the read after the next one.
        """
        found = self._read(wanted, plain(layers[wanted.layer]))
        if wanted.layer + 1 < len(layers):
            self._begin_next(wanted, plain(layers[wanted.layer + 1]), layouts[wanted.layer + 1])
        return found

    def _begin_next(self, wanted: Wanted, tokens: PlainTokens, layout: KVLayout) -> None:
        """Start to copy what the next layer will read, into the buffer that the layer before this one has read."""
        own, end = layout.span(wanted.chunk)
        first = max(0, end - (wanted.end - wanted.start)) if wanted.start else 0
        if first < own:
            ahead = Wanted(wanted.layer + 1, wanted.branches, wanted.chunk, first, own, end)
            self._begin(ahead, tokens)
            self._ahead = ahead

    def _read(self, wanted: Wanted, tokens: PlainTokens) -> tuple[Tensor, Tensor]:
        if self._ahead == wanted:
            self.taken += 1
        else:
            self._begin(wanted, tokens)
        self._ahead = None
        found = self._views(wanted, tokens)
        written, first = self._written, max(wanted.start, wanted.own)
        if first < wanted.end:
            at = slice(first - wanted.start, wanted.end - wanted.start)
            if written is not None and self._is_own(written, wanted):
                self.lane.join()
                for target, source in zip(found, written.kv, strict=True):
                    target[..., at, :] = source[..., first - wanted.own :, :]
            else:
                stored = tokens.slot(wanted.branches, first, wanted.end)
                self.lane.run(lambda: self._copy([target[..., at, :] for target in found], stored))
        self.lane.join()
        self._written = None
        self._turn = 1 - self._turn
        keys, values = (one.flatten(0, 1).to(self.place.model_dtype) for one in found)
        return keys, values

    def drop(self) -> None:
        """What was copied ahead may be another's by the time it is read: chunks begin, finish, or change places."""
        self._ahead = self._written = None

    def settle(self) -> None:
        """The host is about to look at what is stored."""
        self.drop()
        self.lane.settle()

    def release(self) -> None:
        self.drop()
        self.lane.join()  # the memory goes back in the order of the model's work
        self._buffers = [None, None]

    @property
    def bytes(self) -> int:
        return sum(held.nbytes for held in self._buffers if held is not None)

    # -- inside ------------------------------------------------------------------------------------------------------

    def _begin(self, wanted: Wanted, tokens: PlainTokens) -> None:
        self._ahead = None
        last = min(wanted.own, wanted.end)
        if wanted.start < last:
            stored = tokens.slot(wanted.branches, wanted.start, last)
            targets = [one[..., : last - wanted.start, :] for one in self._views(wanted, tokens)]
            self.lane.run(lambda: self._copy(targets, stored))

    def _copy(self, targets: list[Tensor], stored: tuple[Tensor, Tensor]) -> None:
        for target, source in zip(targets, stored, strict=True):
            copy_runs(target, source)

    def _views(self, wanted: Wanted, tokens: PlainTokens) -> tuple[Tensor, Tensor]:
        """Room for keys and values in the buffer whose turn it is."""
        count = wanted.end - wanted.start
        _, batch, heads, capacity, width = tokens.keys.shape
        streams = len(wanted.branches) * batch * heads
        buffer = self._buffers[self._turn]
        if buffer is None or buffer.shape[1] < streams * capacity * width or buffer.dtype != tokens.keys.dtype:
            self.lane.join()
            self._buffers[self._turn] = buffer = None  # before the new one is made: never both
            buffer = torch.empty(2, streams * capacity * width, dtype=tokens.keys.dtype, device=self.place.model_device)
            self._buffers[self._turn] = buffer
        shape = (len(wanted.branches), batch, heads, count, width)
        keys, values = (half[: streams * count * width].view(shape) for half in buffer)
        return keys, values

    def _is_own(self, written: Written, wanted: Wanted) -> bool:
        same = (written.layer, written.branches, written.start) == (wanted.layer, wanted.branches, wanted.own)
        return same and written.kv[0].shape[-2] == wanted.end - wanted.own


def plain(tokens: LayerTokens) -> PlainTokens:
    assert isinstance(tokens, PlainTokens)
    return tokens
