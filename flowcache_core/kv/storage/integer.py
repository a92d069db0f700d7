"""Keys and values in 8, 4 or 2 bits (KIVI's rule: keys by channel, values by token)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...errors import require, require_count
from ...options import option, replaced
from .base import Packed
from .codec import Codec
from .ranges import ByChannel, ByToken

VALUE_GROUP = 64
"""Channels of a value that share a scale where nothing else is asked for (Quant VideoGen's blocks)."""


@dataclass(frozen=True)
class Integer(Packed):
    """Base of the integer formats.

    ``key_group``: the most tokens of a chunk that share their keys' scales, 0 for the whole chunk. ``value_group``:
    neighbouring channels of a token that share its values' scale, 0 for 64, or what divides the head below it.
    """

    bits: ClassVar[int]

    key_group: int = option(
        128,
        "Most tokens of a chunk that share the scales of their keys, one per channel; 0: the whole chunk.",
        minimum=0,
        maximum=1_000_000,
        optional=True,
        advanced=True,
    )
    value_group: int = option(
        0,
        "Neighbouring channels of a token that share the scale of its values; 0: 64, or the whole head below that.",
        minimum=0,
        maximum=1024,
        optional=True,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("key_group", self.key_group, minimum=0)
        require_count("value_group", self.value_group, minimum=0)

    def codecs(self, head_dim: int, chunk_tokens: int) -> tuple[Codec, Codec, int]:
        group = fitting_group("value_group", self.value_group, head_dim, self.bits)
        keys, values = ByChannel(head_dim, self.bits), ByToken(head_dim, self.bits, group)
        return keys, values, self.key_group or chunk_tokens


def fitting_group(field: str, group: int, head_dim: int, bits: int) -> int:
    """``group``, or what 0 stands for. SettingError when it does not divide ``head_dim``, or bytes are not filled."""
    whole = head_dim * bits % 8 == 0
    require(whole, "storage", f"{bits} bits, heads of {head_dim}", f"a multiple of {8 // bits} channels in a head")
    if group == 0:
        return max(size for size in range(1, min(VALUE_GROUP, head_dim) + 1) if head_dim % size == 0)
    divisors = ", ".join(str(size) for size in range(8, head_dim + 1) if head_dim % size == 0)
    require(head_dim % group == 0, field, group, f"a divisor of the model's head_dim {head_dim}: {divisors}, or 0")
    return group


@dataclass(frozen=True)
class Int8(Integer):
    """Hardly to be told from 16 bits, at half their size."""

    name: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8


@dataclass(frozen=True)
class Int4(Integer):
    """A little over a quarter of 16 bits."""

    name: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4


@dataclass(frozen=True)
class Int2(Integer):
    """About a sixth of 16 bits; smaller groups, which cost more scales, are worth it."""

    name: ClassVar[str] = "int2"
    bits: ClassVar[int] = 2

    key_group: int = replaced(Integer, "key_group", 64)
