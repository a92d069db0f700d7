"""Attention to packed tokens without unpacking them first, where Triton is and the device is CUDA's.

A kernel is taken only after a small case of its own kind has come out as attention over the unpacked tokens does on
this device; where it does not, or does not run, reading unpacks as everywhere else.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .packed import PackedTokens
from .ranges import ByChannel, ByToken

ROWS, TILE = 64, 64
CLOSE = 2e-2
"""Largest difference to plain attention, in parts of the largest value, that 16 bits explain."""


def kind_of(tokens: PackedTokens) -> tuple[int, int, int] | None:
    """Head size, bits and channels of a value's group, where the kernel reads such tokens."""
    keys, values = tokens.keys.codec, tokens.values.codec
    if isinstance(keys, ByChannel) and isinstance(values, ByToken) and keys.bits == values.bits:
        return keys.head_dim, keys.bits, values.group
    return None


def usable(tokens: PackedTokens, q: Tensor) -> bool:
    """Whether ``q`` may go through :func:`attend_packed` here."""
    kind = kind_of(tokens)
    if kind is None or q.device.type != "cuda" or tokens.keys.exact.device != q.device:
        return False
    return q.dtype == tokens.keys.exact.dtype and _proven(*kind, q.dtype, q.device)


@lru_cache(maxsize=64)
def _proven(size: int, bits: int, group: int, dtype: torch.dtype, device: torch.device) -> bool:
    if find_spec("triton") is None:
        return False
    try:
        return agrees(size, bits, group, dtype, device)
    except Exception as error:  # a compiler's, a driver's: whatever it is, there is another way
        logging.info("FlowCache: attention over packed K/V does not run here, unpacking instead: %r", error)
        return False


def agrees(size: int, bits: int, group: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the kernel gives what attention over the unpacked tokens gives: 100 packed ones and 30 as computed."""
    g = torch.Generator().manual_seed(0)
    tokens = [torch.randn(1, 2, 100, size, generator=g).to(device) for _ in range(2)]
    own = [torch.randn(1, 2, 30, size, generator=g).to(device, dtype) for _ in range(2)]
    q = torch.randn(1, 4, 70, size, generator=g).to(device, dtype)
    keys, values = ByChannel(size, bits), ByToken(size, bits, group)
    entry = keys.fit(tokens[0])
    rows, other = keys.encode(tokens[0], entry), values.encode(tokens[1], {})
    table = {name: shared.unsqueeze(2) for name, shared in entry.items()}
    slots = torch.zeros(1, 2, 100, dtype=torch.uint8, device=device)
    read = [torch.empty(1, 2, 100, size, dtype=dtype, device=device) for _ in range(2)]
    keys.decode(rows, table, slots.long(), read[0])
    values.decode(other, {}, slots.long(), read[1])
    k, v = (torch.cat((a, b), 2).repeat_interleave(2, 1) for a, b in zip(read, own, strict=True))
    expected = functional.scaled_dot_product_attention(q, k, v)
    found = launch(q, rows["codes"], table, slots, other, own, 100, (0, 0, 30), group, bits)
    return bool((found - expected).abs().max() <= CLOSE * expected.abs().max())


def attend_packed(tokens: PackedTokens, branches: range, q: Tensor, end: int) -> Tensor:
    """Attention of ``q [n * batch, heads, T, head_dim]`` to the first ``end`` tokens of a layer; q's shape."""
    part = slice(branches.start, branches.stop)
    kind = kind_of(tokens)
    assert kind is not None
    sink, packed, recent = tokens.parts
    tail = tokens.sink
    last = tail + recent + end - tokens.clean

    def flat(held: Tensor) -> Tensor:
        return held[part].flatten(0, 1)

    table = {name: flat(shared) for name, shared in tokens.keys.table.items()}
    values = {name: flat(rows) for name, rows in tokens.values.rows.items()}
    own = [flat(half.exact) for half in (tokens.keys, tokens.values)]
    codes, slots = flat(tokens.keys.rows["codes"]), flat(tokens.slots)
    return launch(q, codes, table, slots, values, own, packed, (sink, tail, last), kind[2], kind[1])


def launch(
    q: Tensor,
    key_codes: Tensor,
    table: dict[str, Tensor],
    slots: Tensor,
    values: dict[str, Tensor],
    own: list[Tensor],
    packed: int,
    ends: tuple[int, int, int],
    group: int,
    bits: int,
) -> Tensor:
    """``own``: keys and values as computed ``[B, kv_heads, held, d]``, of which 0 to ``ends[0]`` and ``ends[1]`` to
    ``ends[2]`` are seen. The others as codecs give them, ``[B, kv_heads, room, ...]``."""
    kernel: Any = import_module(".triton_attention", __package__).attend
    q = q.contiguous()
    batch, heads, count, size = q.shape
    out = torch.empty_like(q)
    wide = 1 << (size - 1).bit_length()
    kernel[(-(-count // ROWS), batch * heads)](
        q, out, key_codes, table["low"], table["step"], slots, values["codes"], values["low"], values["step"], *own,
        count, packed, key_codes.shape[2], table["low"].shape[2], own[0].shape[2], *ends, size**-0.5,
        HEADS=heads, SHARED=heads // key_codes.shape[1], SIZE=size, WIDE=max(16, wide), BYTES=key_codes.shape[3],
        BITS=bits, GROUP=group, ROWS=ROWS, TILE=TILE,
    )  # fmt: skip
    return out
