"""Groups after tokens were dropped: those left move to the first slots; too many of them become fewer.

A compressor that looks at content leaves other tokens in every head, and over a long video the rests of ever more
groups. So that a table never grows, the smallest share one entry from then on; their tokens alone are packed again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .codec import Codec, Rows, Table
from .groups import Slots


@dataclass(frozen=True)
class Regrouping:
    """Of a branch's kept packed tokens: ``slot`` so far and ``new_slot`` ``[batch, heads, tokens]``; ``order``
    ``[batch, heads, slots]`` groups from the largest down; ``joined`` (bool, like it) those that become one; ``used``
    ``[batch, heads, 1]`` slots from now on.
    """

    slot: Tensor
    new_slot: Tensor
    order: Tensor
    joined: Tensor
    used: Tensor
    slots: Slots

    @classmethod
    def of(cls, slot: Tensor, slots: Slots) -> Regrouping:
        """From the kept tokens' slots; no head waits for another, and nobody for the device."""
        empty = torch.zeros((*slot.shape[:2], slots.total), dtype=torch.int64, device=slot.device)
        members = empty.scatter_add(-1, slot, torch.ones_like(slot))
        order = members.sort(dim=-1, descending=True, stable=True).indices
        rank, last = order.argsort(dim=-1), slots.kept - 1
        joined = (rank >= last) & (members > 0)
        used = (members > 0).sum(-1, keepdim=True).clamp_max(slots.kept)
        return cls(slot, rank.clamp_max(last).gather(-1, slot), order, joined, used, slots)

    def regroup(self, codec: Codec, rows: Rows, table: Table, block: int) -> None:
        """Bring ``table`` into its new order and pack again what is joined, ``block`` tokens at a time, in place."""
        old, joins, last = {name: held.clone() for name, held in table.items()}, {}, self.slots.kept - 1
        if self.slots.kept < self.slots.total:
            joins = codec.join(old, self.order[..., last : last + 1], self.joined)
            again = self.joined.gather(-1, self.slot) & (self.joined.sum(-1, keepdim=True) > 1)
            for first in range(0, self.slot.shape[-1], block):
                own = slice(first, first + block)
                part = {name: held[..., own, :] for name, held in rows.items()}
                self._pack_again(codec, part, old, joins, own, again[..., own])
        for name, held in table.items():
            shape = self.order.shape + (1,) * (held.dim() - 3)
            held.copy_(old[name].gather(2, self.order.reshape(shape).expand(held.shape)))
            if joins:
                several = (self.joined.sum(-1) > 1).reshape(shape[:2] + shape[3:])
                held[:, :, last] = torch.where(several, joins[name], held[:, :, last])

    def _pack_again(self, codec: Codec, rows: Rows, table: Table, entry: Rows, own: slice, again: Tensor) -> None:
        slot = self.slot[..., own]
        tokens = torch.empty((*slot.shape, codec.head_dim), device=slot.device)
        codec.decode(rows, table, slot, tokens)
        for name, new in codec.encode(tokens, entry).items():
            rows[name].copy_(torch.where(again.unsqueeze(-1), new, rows[name]))
