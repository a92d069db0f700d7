"""One layer whose finished chunks are packed: ``[sink | packed | recent | active]``, all but the second as computed.

A chunk is packed when it has left the recent ones, once; from then on its bytes are moved as they are. What the tokens
of a group share lies in a slot of a table. When dropped tokens leave so many groups behind that there are not slots for
all, the smallest groups are packed again as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ...background import sent
from ..spec import KVSpec
from .codec import Codec, Entry, Rows
from .groups import Slots, group_count
from .regroup import Regrouping
from .tokens import LayerTokens, Place, Room, Scratch, copy_runs, move_left

_BLOCK_BYTES = 2**24
"""fp32 tokens that are unpacked at once, beside the buffer they go to."""


@dataclass(frozen=True)
class Packing:
    """Codecs of keys and values, most tokens of a group, and how many tokens at either end stay as computed."""

    keys: Codec
    values: Codec
    group: int
    sink: int
    recent: int


@dataclass(frozen=True)
class Half:
    """Keys or values. exact ``[branches, batch, heads, sink + recent + active, head_dim]``; rows ``[..., packed,
    width]``; table ``[..., slots, *shape]``.
    """

    codec: Codec
    exact: Tensor
    rows: Rows
    table: Entry

    def tensors(self) -> Iterator[Tensor]:
        yield from (self.exact, *self.rows.values(), *self.table.values())


class PackedTokens(LayerTokens):
    """``slots``: of every packed token, the slot of its group. ``next_slot [branches, batch, heads, 1]``: the first
    that is free, which after a compression is another one in every head.
    """

    def __init__(self, spec: KVSpec, room: Room, place: Place, scratch: Scratch, packing: Packing) -> None:
        self._place, self._scratch, self._packing = place, scratch, packing
        self._block = room.largest_chunk
        self.sink = min(packing.sink, room.capacity)
        self.recent = min(packing.recent, room.capacity - self.sink)
        packed = [self._parts(clean)[1] for clean in accumulate(room.chunks)]
        self._slots = Slots.of(room, packing.group, [b - a for a, b in zip([0, *packed], packed)])
        shape = (spec.branches, spec.batch, spec.kv_heads)
        most = room.capacity - self.sink - self.recent
        exact = (*shape, self.sink + self.recent + room.active, spec.head_dim)

        def half(codec: Codec) -> Half:
            rows = {name: place.empty((*shape, most, width), kind) for name, (width, kind) in codec.rows.items()}
            table = {
                name: place.empty((*shape, self._slots.total, *one), kind) for name, (one, kind) in codec.table.items()
            }
            return Half(codec, place.empty(exact, place.dtype), rows, table)

        self.keys, self.values = half(packing.keys), half(packing.values)
        self.slots = place.empty((*shape, most), smallest_int(self._slots.total))
        self.next_slot = torch.zeros(*shape, 1, dtype=torch.int32, device=place.device)

    def _parts(self, clean: int) -> tuple[int, int, int]:
        """Of so many clean tokens: in the sink, packed, recent."""
        sink = min(clean, self.sink)
        recent = min(clean - sink, self.recent)
        return sink, clean - sink - recent, recent

    @property
    def parts(self) -> tuple[int, int, int]:
        """Clean tokens in the sink, packed, recent."""
        return self._parts(self.clean)

    @property
    def _halves(self) -> tuple[Half, Half]:
        return self.keys, self.values

    # -- writing -----------------------------------------------------------------------------------------------------

    def slot(self, branches: range, start: int, end: int) -> tuple[Tensor, Tensor]:
        shift = self.sink + self._parts(self.clean)[2] - self.clean
        own = slice(start + shift, end + shift)
        part = slice(branches.start, branches.stop)
        return self.keys.exact[part, ..., own, :], self.values.exact[part, ..., own, :]

    def commit(self, count: int, active: int) -> Tensor | None:
        (sink, packed, recent), parts = self._parts(self.clean), self._parts(self.clean + count)
        to_sink, to_pack = parts[0] - sink, parts[1] - packed
        first, last = self.sink + to_sink, self.sink + to_sink + to_pack
        finite = self._pack(first, last, packed) if to_pack else None
        for half in self._halves:
            half.exact[..., sink : sink + to_sink, :] = half.exact[..., self.sink : first, :]
            move_left(half.exact, last, recent + active - to_sink - to_pack, to_sink + to_pack, self._block)
        self.clean += count
        return finite

    def _pack(self, first: int, last: int, at: int) -> Tensor:
        """Pack the exact tokens ``first`` to ``last``, the next ones behind ``at`` packed ones; finite or not."""
        run = last - first
        count = group_count(run, self._packing.group)
        count = count if count <= self._slots.a_run else -(-run // self._packing.group)
        numbers = torch.arange(count, device=self._place.device, dtype=torch.int32)
        slots = self.next_slot + numbers  # [branches, batch, heads, groups]
        if run % count == 0:
            sizes = [run // count] * count
        else:
            most = self._packing.group
            sizes = [most] * (run // most) + [run % most]
        finite = [self._pack_half(half, first, sizes, at, slots) for half in self._halves]
        own = [slots[..., i : i + 1].expand(*slots.shape[:-1], size) for i, size in enumerate(sizes)]
        self.slots[..., at : at + run] = torch.cat(own, -1).to(self.slots.dtype)
        self.next_slot += count
        return torch.stack(finite)

    def _pack_half(self, half: Half, first: int, sizes: list[int], at: int, slots: Tensor) -> Tensor:
        codec, equal = half.codec, len(set(sizes)) == 1
        finite = torch.ones((), dtype=torch.bool, device=self._place.model_device)
        for branch in range(half.exact.shape[0]):  # one at a time: temporaries stay at a branch of one layer
            run = half.exact[branch, ..., first : first + sum(sizes), :].to(self._place.model_device)
            finite = finite & run.isfinite().all()
            parts = [run.unflatten(-2, (len(sizes), -1))] if equal else [p.unsqueeze(-3) for p in run.split(sizes, -2)]
            done = group = 0
            for part in parts:  # [batch, heads, groups, tokens, head_dim]
                entry = codec.fit(part)
                count, tokens = part.shape[-3], part.shape[-3] * part.shape[-2]
                for name, rows in codec.encode(part, entry).items():
                    half.rows[name][branch, ..., at + done : at + done + tokens, :] = rows.flatten(-3, -2)
                for name, shared in entry.items():
                    put(half.table[name][branch], slots[branch, ..., group : group + count], shared)
                done, group = done + tokens, group + count
        return finite

    # -- reading -----------------------------------------------------------------------------------------------------

    def read(self, branches: range, start: int, end: int, heads: slice = slice(None)) -> tuple[Tensor, Tensor]:
        part, place = slice(branches.start, branches.stop), self._place
        sink, packed, _ = self._parts(self.clean)
        in_one_piece = start >= sink + packed or (packed == 0 and sink in (0, self.sink))
        if in_one_piece and place.as_used:
            shift = self.sink - sink - packed
            keys, values = (h.exact[part, :, heads, start + shift : end + shift].flatten(0, 1) for h in self._halves)
            return keys, values
        found = []
        for name, half in zip(("keys", "values"), self._halves):
            shape = half.exact[part, :, heads].shape
            out = self._scratch.take(name, (*shape[:3], end - start, shape[4]), place.model_dtype, place.model_device)
            self._fill(half, out, part, heads, start, end)
            found.append(out.flatten(0, 1))
        return found[0], found[1]

    def clean_tokens(self, branch: int, name: str, device: torch.device | None) -> Tensor:
        half = self.keys if name == "keys" else self.values
        _, batch, heads, _, width = half.exact.shape
        shape = (1, batch, heads, self.clean, width)
        out = torch.empty(shape, dtype=self._place.model_dtype, device=self._place.model_device)
        self._fill(half, out, slice(branch, branch + 1), slice(None), 0, self.clean)
        return out[0] if device is None else out[0].to(device)

    def _fill(self, half: Half, out: Tensor, part: slice, heads: slice, start: int, end: int) -> None:
        """Tokens ``start`` to ``end`` into ``out [branches, batch, heads, end - start, head_dim]``."""
        sink, packed, _ = self._parts(self.clean)
        first, last = min(max(start, sink), end), max(min(end, sink + packed), min(max(start, sink), end))
        exact = half.exact[part, :, heads]
        self._copy(out[..., : first - start, :], exact[..., start:first, :])
        shift = self.sink - sink - packed
        self._copy(out[..., last - start :, :], exact[..., last + shift : end + shift, :])
        if first == last:
            return
        table = {name: sent(held[part, :, heads], out.device) for name, held in half.table.items()}
        block = max(1, _BLOCK_BYTES // (4 * out[..., 0, :].numel()))
        for begin in range(first, last, block):
            stop = min(begin + block, last)
            own = slice(begin - sink, stop - sink)
            rows = {n: sent(held[part, :, heads, own], out.device) for n, held in half.rows.items()}
            slot = sent(self.slots[part, :, heads, own], out.device).long()
            half.codec.decode(rows, table, slot, out[..., begin - start : stop - start, :])

    def _copy(self, target: Tensor, source: Tensor) -> None:
        if self._place.apart:
            copy_runs(target, source)
        else:
            target.copy_(source)

    # -- dropping ----------------------------------------------------------------------------------------------------

    def keep(self, branch: int, kept: Tensor, active: int) -> None:
        (sink, _, recent), parts = self._parts(self.clean), self._parts(kept.shape[-1])
        # Kept tokens are in order, so what is to be packed was packed already: at least as many stood behind it.
        own = kept[..., parts[0] : parts[0] + parts[1]] - sink
        ends = [(0, kept[..., : parts[0]]), (self.sink, kept[..., parts[0] + parts[1] :])]
        exact = [[(at, self._exact(half, branch, index)) for at, index in ends] for half in self._halves]
        if parts[1]:
            self._keep_packed(branch, own)
        for half, found in zip(self._halves, exact, strict=True):
            for at, tokens in found:
                half.exact[branch, ..., at : at + tokens.shape[-2], :] = tokens
            move_left(half.exact[branch], self.sink + recent, active, recent - parts[2], self._block)

    def _exact(self, half: Half, branch: int, index: Tensor) -> Tensor:
        """Clean tokens ``index [batch, heads, n]`` of a branch as computed, or unpacked."""
        sink, packed, _ = self._parts(self.clean)
        width = half.exact.shape[-1]
        behind = index - packed + self.sink - sink
        place = torch.where(index < sink, index, behind.clamp_min(0))
        tokens = half.exact[branch].gather(-2, place.unsqueeze(-1).expand(*place.shape, width))
        if packed == 0 or index.shape[-1] == 0:
            return tokens
        was = (index - sink).clamp(0, packed - 1)
        out = torch.empty_like(tokens)
        rows = {n: held[branch].gather(-2, was.unsqueeze(-1).expand(*was.shape, held.shape[-1])) for n, held in
                half.rows.items()}  # fmt: skip
        table = {name: held[branch] for name, held in half.table.items()}
        half.codec.decode(rows, table, self.slots[branch].gather(-1, was).long(), out)
        return torch.where(((index >= sink) & (index < sink + packed)).unsqueeze(-1), out, tokens)

    def _keep_packed(self, branch: int, kept: Tensor) -> None:
        """Gather the packed tokens ``kept`` to the front and the groups that are left to the first slots."""
        count = kept.shape[-1]
        for half in self._halves:
            for held in half.rows.values():
                index = kept.unsqueeze(-1).expand(*kept.shape, held.shape[-1])
                held[branch, ..., :count, :] = held[branch].gather(-2, index)
        slot = self.slots[branch].gather(-1, kept).long()
        regrouping = Regrouping.of(slot, self._slots)
        block = max(1, _BLOCK_BYTES // (4 * self.keys.exact[branch, ..., 0, :].numel()))
        for half in self._halves:
            if half.table:
                rows = {name: held[branch, ..., :count, :] for name, held in half.rows.items()}
                regrouping.regroup(half.codec, rows, {n: held[branch] for n, held in half.table.items()}, block)
        self.slots[branch, ..., :count] = regrouping.new_slot.to(self.slots.dtype)
        self.next_slot[branch] = regrouping.used.to(torch.int32)

    def shrink(self, clean: int) -> None:
        self.clean = clean

    def held(self, branch: int, span: slice) -> Iterator[Tensor]:
        """All that is kept of finished chunks: what a group shares may be of several."""
        _, packed, recent = self._parts(self.clean)
        for half in self._halves:
            yield half.exact[branch, ..., : self.sink + recent, :]
            yield from (rows[branch, ..., :packed, :] for rows in half.rows.values())
            yield from (shared[branch] for shared in half.table.values())
        yield self.slots[branch, ..., :packed]
        yield self.next_slot[branch]

    def take_over(self, branch: int, span: slice, own: Tensor | None, parts: Iterator[Tensor]) -> None:
        for held, part in zip(self.held(branch, span), parts):  # in this order: no part too many is taken
            held.copy_(part)

    def forget(self) -> None:
        super().forget()
        self.next_slot.zero_()

    def tensors(self) -> Iterator[Tensor]:
        yield from (*self.keys.tensors(), *self.values.tensors(), self.slots, self.next_slot)


def put(table: Tensor, slots: Tensor, entries: Tensor) -> None:
    """``entries [batch, heads, groups, *shape]`` into ``slots [batch, heads, groups]`` of ``table``."""
    index = slots.long().reshape(*slots.shape, *[1] * (entries.dim() - 3)).expand(entries.shape)
    table.scatter_(2, index, entries.to(table))


def smallest_int(count: int) -> torch.dtype:
    """The smallest dtype that numbers ``count`` things and that ranks can send to each other."""
    return torch.uint8 if count <= 2**8 else torch.int32
