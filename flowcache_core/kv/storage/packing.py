"""Whole numbers of two, four or eight bits, several to a byte along the last dimension.

Number i lies in byte ``i % width`` (planes, not neighbours), so that a plane is unpacked by one shift into its place.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def packed_width(numbers: int, bits: int) -> int:
    """Bytes that ``numbers`` of ``bits`` take; exact, since callers see to it that they fill them."""
    return numbers * bits // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes ``[..., n]`` below ``2 ** bits`` to bytes ``[..., n * bits / 8]``."""
    planes = codes.chunk(8 // bits, -1)
    packed = planes[0].clone()
    for place, plane in enumerate(planes[1:], 1):
        packed |= plane << (bits * place)
    return packed


def planes(packed: Tensor, bits: int) -> Iterator[tuple[slice, Tensor]]:
    """The codes of :func:`pack`, plane by plane: where they stand in the last dimension, and uint8 ``[..., width]``."""
    width, mask = packed.shape[-1], 2**bits - 1
    for place in range(8 // bits):
        yield slice(place * width, (place + 1) * width), (packed >> (bits * place)) & mask


def unpack(packed: Tensor, bits: int) -> Tensor:
    """What :func:`pack` was given."""
    return torch.cat([codes for _, codes in planes(packed, bits)], -1)
