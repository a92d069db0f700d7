"""Counting a model's blocks by the names of its tensors."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import Found, listed, require
from ...reading.limits import LAYERS


def count_layers(keys: Iterable[str], prefix: str) -> int:
    """How many blocks there are under ``prefix``; SettingError unless they are numbered 0, 1, 2 ... without a gap."""
    numbers = {key[len(prefix) :].partition(".")[0] for key in keys if key.startswith(prefix)}
    accepted = f"blocks numbered from 0 without a gap, at most {LAYERS}"
    require(len(numbers) <= LAYERS, prefix + "*", Found(f"{len(numbers)} blocks"), accepted)
    wrong = sorted(numbers - {str(number) for number in range(len(numbers))})
    require(not wrong, prefix + "*", Found(f"{len(numbers)} blocks, among them {listed(wrong)}"), accepted)
    return len(numbers)
