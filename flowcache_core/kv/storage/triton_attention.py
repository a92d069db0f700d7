"""Attention over packed K/V in Triton, which unpacks a tile at a time where it is used and stores nothing unpacked.

Imported only where Triton is. The same numbers as :class:`.integer.Integer` stores: keys as codes with a low and a step
per channel, in the table's slot of their group; values as codes with a low and a step per token and group of channels.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Not by a statement: nothing that the core needs, and this module is read only where it is.
triton: Any = import_module("triton")
tl: Any = import_module("triton.language")


@triton.jit
def soft(acc: Any, peak: Any, total: Any, scores: Any, values: Any) -> Any:
    """One more tile of an online softmax: the sums so far, rescaled to the new largest score."""
    highest = tl.maximum(peak, tl.max(scores, 1))
    shrink = tl.exp(peak - highest)
    weights = tl.exp(scores - highest[:, None])
    acc = acc * shrink[:, None] + tl.dot(weights.to(values.dtype), values)
    return acc, highest, total * shrink + tl.sum(weights, 1)


@triton.jit
def exact(
    q: Any, acc: Any, peak: Any, total: Any, keys: Any, values: Any, first: Any, last: Any, scale: Any,
    SIZE: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
) -> Any:  # fmt: skip
    """Tokens ``first`` to ``last`` of those that are stored as computed."""
    d = tl.arange(0, WIDE)
    for begin in range(first, last, TILE):
        n = begin + tl.arange(0, TILE)
        there = (n < last)[:, None] & (d < SIZE)[None, :]
        k = tl.load(keys + n[:, None] * SIZE + d[None, :], mask=there, other=0.0).to(q.dtype)
        v = tl.load(values + n[:, None] * SIZE + d[None, :], mask=there, other=0.0).to(q.dtype)
        scores = tl.where((n < last)[None, :], tl.dot(q, tl.trans(k)) * scale, float("-inf"))
        acc, peak, total = soft(acc, peak, total, scores, v)
    return acc, peak, total


@triton.jit
def attend(
    q_all: Any, out_all: Any, key_codes: Any, key_low: Any, key_step: Any, slots: Any, value_codes: Any, value_low: Any,
    value_step: Any, exact_keys: Any, exact_values: Any, tokens: Any, packed: Any, room: Any, table: Any, held: Any,
    sink: Any, tail: Any, end: Any, scale: Any, HEADS: tl.constexpr, SHARED: tl.constexpr, SIZE: tl.constexpr,
    WIDE: tl.constexpr, BYTES: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    TILE: tl.constexpr,
) -> None:  # fmt: skip
    """``ROWS`` queries of one head. tokens: of the queries; packed of ``room`` places, ``table`` slots; exact tokens 0
    to ``sink`` and ``tail`` to ``end`` of ``held`` places. SHARED query heads use a K/V head; SIZE channels in WIDE, a
    power of two; a token's codes take BYTES bytes; GROUP channels of a value share a scale.
    """
    here, one = tl.program_id(0), tl.program_id(1)
    row = (one // HEADS) * (HEADS // SHARED) + (one % HEADS) // SHARED
    m, d = here * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDE)
    inside = (m < tokens)[:, None] & (d < SIZE)[None, :]
    place = (one * tokens + m)[:, None] * SIZE + d[None, :]
    q = tl.load(q_all + place, mask=inside, other=0.0)
    acc = tl.zeros([ROWS, WIDE], dtype=tl.float32)
    peak = tl.full([ROWS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    exact_keys += row.to(tl.int64) * held * SIZE
    exact_values += row.to(tl.int64) * held * SIZE
    acc, peak, total = exact(q, acc, peak, total, exact_keys, exact_values, tail, end, scale, SIZE, WIDE, TILE)
    acc, peak, total = exact(q, acc, peak, total, exact_keys, exact_values, 0, sink, scale, SIZE, WIDE, TILE)
    first, byte, shift = row.to(tl.int64) * room, d % BYTES, (d // BYTES) * BITS
    scales = SIZE // GROUP
    for begin in range(0, packed, TILE):
        n = begin + tl.arange(0, TILE)
        there = (n < packed)[:, None] & (d < SIZE)[None, :]
        slot = tl.load(slots + first + n, mask=n < packed, other=0).to(tl.int64)
        entry = (row.to(tl.int64) * table + slot)[:, None] * SIZE + d[None, :]
        at = (first + n)[:, None] * BYTES + byte[None, :]
        codes = (tl.load(key_codes + at, mask=there, other=0).to(tl.int32) >> shift[None, :]) & ((1 << BITS) - 1)
        low = tl.load(key_low + entry, mask=there, other=0.0).to(tl.float32)
        k = low + codes.to(tl.float32) * tl.load(key_step + entry, mask=there, other=0.0).to(tl.float32)
        scores = tl.where((n < packed)[None, :], tl.dot(q, tl.trans(k.to(q.dtype))) * scale, float("-inf"))
        codes = (tl.load(value_codes + at, mask=there, other=0).to(tl.int32) >> shift[None, :]) & ((1 << BITS) - 1)
        entry = (first + n)[:, None] * scales + (d // GROUP)[None, :]
        low = tl.load(value_low + entry, mask=there, other=0.0).to(tl.float32)
        v = low + codes.to(tl.float32) * tl.load(value_step + entry, mask=there, other=0.0).to(tl.float32)
        acc, peak, total = soft(acc, peak, total, scores, v.to(q.dtype))
    tl.store(out_all + place, (acc / total[:, None]).to(q.dtype), mask=inside)
