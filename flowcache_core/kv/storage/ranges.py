"""Whole numbers between the lowest and the highest value: keys per channel of a group, values per token.

What a key's channel holds is alike for all tokens of a chunk and unlike its neighbours (a few channels are far larger);
values have no such channels. So keys are best scaled by channel and values by token, which is what KIVI
(arXiv 2402.02750) and those after it found, for video too (arXiv 2603.27469).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .codec import Codec, Entry, Rows, Table, at
from .packing import pack, packed_width, planes

SCALE = torch.float16
"""Of lows and steps: half of what fp32 takes, and what rounding they bring is measured by the codes."""
SHRINKS = (1.0, 0.9, 0.8, 0.7)
"""Parts of the range that are tried with few bits: to cut off the ends may cost less than coarser steps."""


def ranged(values: Tensor, dim: int, bits: int) -> tuple[Tensor, Tensor]:
    """Low and step, ``dim`` kept at size 1, in :data:`SCALE`, for codes of ``bits`` along ``dim``.

    With four bits or less the ends are cut off as far as that lessens the squared error.
    """
    low, high = values.amin(dim, keepdim=True), values.amax(dim, keepdim=True)
    if bits > 4:
        return scaled(low, high, bits)
    middle, half = (low + high) / 2, (high - low) / 2
    best = chosen = None
    for shrink in SHRINKS:
        found = scaled(middle - half * shrink, middle + half * shrink, bits)
        error = (decoded(codes_of(values, *found, bits), *found) - values).square_().sum(dim, keepdim=True)
        if best is None or chosen is None:
            best, chosen = error, found
        else:
            better = error < best
            best = torch.where(better, error, best)
            chosen = tuple(torch.where(better, new, old) for new, old in zip(found, chosen))  # type: ignore[assignment]
    assert chosen is not None
    return chosen


def scaled(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Low and step in :data:`SCALE`, within what it can hold."""
    largest = torch.finfo(SCALE).max
    step = ((high - low) / (2**bits - 1)).clamp(torch.finfo(SCALE).tiny, largest)
    return low.clamp(-largest, largest).to(SCALE), step.to(SCALE)


def codes_of(values: Tensor, low: Tensor, step: Tensor, bits: int) -> Tensor:
    """Nearest codes, as floating-point numbers."""
    return ((values - low.float()) / step.float()).round_().clamp_(0, 2**bits - 1)


def decoded(codes: Tensor, low: Tensor, step: Tensor) -> Tensor:
    return torch.addcmul(low.float(), codes, step.float())


@dataclass(frozen=True)
class ByChannel(Codec):
    """Every channel of a group has its low and step."""

    head_dim: int
    bits: int

    @property
    def rows(self) -> dict[str, tuple[int, torch.dtype]]:
        return {"codes": (packed_width(self.head_dim, self.bits), torch.uint8)}

    @property
    def table(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {name: ((self.head_dim,), SCALE) for name in ("low", "step")}

    def fit(self, tokens: Tensor) -> Entry:
        low, step = ranged(tokens.float(), -2, self.bits)
        return {"low": low.squeeze(-2), "step": step.squeeze(-2)}

    def encode(self, tokens: Tensor, entry: Entry) -> Rows:
        low, step = (entry[name].unsqueeze(-2) for name in ("low", "step"))
        return {"codes": pack(codes_of(tokens.float(), low, step, self.bits).to(torch.uint8), self.bits)}

    def decode(self, rows: Mapping[str, Tensor], table: Table, slot: Tensor, out: Tensor) -> None:
        for place, codes in planes(rows["codes"], self.bits):
            low, step = (at(table[name][..., place], slot) for name in ("low", "step"))
            out[..., place] = decoded(codes.float(), low, step)

    def join(self, table: Table, order: Tensor, joined: Tensor) -> Entry:
        low, step = table["low"].float(), table["step"].float()
        outside = ~joined.unsqueeze(-1)
        high = (low + step * (2**self.bits - 1)).masked_fill(outside, -torch.inf).amax(-2)
        least = low.masked_fill(outside, torch.inf).amin(-2)
        nothing = ~joined.any(-1, keepdim=True)  # a head without such a group: any finite entry
        found = scaled(least.masked_fill(nothing, 0.0), high.masked_fill(nothing, 0.0), self.bits)
        return {"low": found[0], "step": found[1]}


@dataclass(frozen=True)
class ByToken(Codec):
    """Every token has a low and a step for each ``group`` of neighbouring channels; nothing is shared."""

    head_dim: int
    bits: int
    group: int

    @property
    def rows(self) -> dict[str, tuple[int, torch.dtype]]:
        groups = self.head_dim // self.group
        width = packed_width(self.head_dim, self.bits)
        return {"codes": (width, torch.uint8), "low": (groups, SCALE), "step": (groups, SCALE)}

    def encode(self, tokens: Tensor, entry: Entry) -> Rows:
        grouped = tokens.float().unflatten(-1, (-1, self.group))
        low, step = ranged(grouped, -1, self.bits)
        codes = codes_of(grouped, low, step, self.bits).flatten(-2).to(torch.uint8)
        return {"codes": pack(codes, self.bits), "low": low.squeeze(-1), "step": step.squeeze(-1)}

    def decode(self, rows: Mapping[str, Tensor], table: Table, slot: Tensor, out: Tensor) -> None:
        for place, codes in planes(rows["codes"], self.bits):
            out[..., place] = codes
        grouped = out.unflatten(-1, (-1, self.group))
        low, step = (rows[name].float().unsqueeze(-1) for name in ("low", "step"))
        grouped.copy_(decoded(grouped.float(), low, step))
