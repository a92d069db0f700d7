"""What keeping less of the history does to a model's attention: errors measured in one recorded run, as a file.

A table of relative squared errors of the self-attention's output, by compressor, storage, budget and layer
(:mod:`.recorded_errors` makes it). Budgets are shares of the history, so that a table serves videos of other lengths.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from ..errors import SettingError, is_finite
from ..reading.json_text import parse_object, read_object
from .spec import KVSpec

FOLDER = Path(__file__).parent / "profiles"
SCHEMA, READ = 2, (1, 2)  # 1 has no numbers of heads
ACCEPTED = f'JSON with "schema": {SCHEMA}, as measure-kv writes it'
Errors = Mapping[str, Mapping[str, tuple[tuple[float, ...], ...]]]
"""compressor -> storage -> one row a share: one number a layer, or one for each of its K/V heads, layer by layer. A
head's is what it loses against what its whole layer gives, so that a layer's numbers add up. Where a compressor needs
more than the first shares, rows begin later: the last is of the last share."""


@dataclass(frozen=True)
class Sizes:
    """Of the model that was measured: another of the same sizes is taken to be it."""

    layers: int
    kv_heads: int
    head_dim: int
    tokens_per_frame: int

    @classmethod
    def of(cls, spec: KVSpec) -> Sizes:
        return cls(spec.layers, spec.all_kv_heads or spec.kv_heads, spec.head_dim, spec.tokens_per_frame)


@dataclass(frozen=True)
class ErrorProfile:
    """model: its name. shares: of the history, rising, the last one 1. errors: see :data:`Errors`."""

    model: str
    sizes: Sizes
    shares: tuple[float, ...]
    errors: Errors

    @property
    def by_head(self) -> bool:
        """Whether every head was measured, and not layers alone."""
        rows = next(rows for by_storage in self.errors.values() for rows in by_storage.values())
        return len(rows[0]) > self.sizes.layers

    def parts(self, compressor: str, storage: str, share: float) -> tuple[float, ...]:
        """Of every layer, or of all heads of every layer, where so much of the history is kept: linear between what was
        measured; below it, where nobody knows, inversely as the share."""
        rows = self.errors[compressor][storage]
        shares = self.shares[-len(rows) :]
        if share <= shares[0]:
            return tuple(value * shares[0] / max(share, 1e-9) for value in rows[0])
        at = min(bisect_left(shares, share), len(rows) - 1)
        low, high = shares[at - 1], shares[at]
        part = min(max((share - low) / (high - low), 0.0), 1.0)
        return tuple(below + (above - below) * part for below, above in zip(rows[at - 1], rows[at], strict=True))

    def error(self, compressor: str, storage: str, share: float, layer: int | None) -> float:
        """Of one layer, or the mean over all, as :meth:`parts`; at most 1."""
        parts, layers = self.parts(compressor, storage, share), self.sizes.layers
        if layer is None:
            return min(1.0, sum(parts) / layers)
        each = len(parts) // layers
        return min(1.0, sum(parts[layer * each : (layer + 1) * each]))

    def least_share(self, compressor: str, storage: str) -> float:
        """The smallest that was measured."""
        return self.shares[-len(self.errors[compressor][storage])]

    def as_json(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, separators=(",", ":")) + "\n"


def read_profile(path: Path) -> ErrorProfile:
    """SettingError for a file that is none."""
    return _profile(read_object(path, "K/V profile", ACCEPTED), path.name)


@lru_cache(maxsize=64)
def parse_profile(text: str) -> ErrorProfile:
    """From what such a file holds; SettingError for what is none."""
    return _profile(parse_object(text, "K/V profile", ACCEPTED), "a text")


def _profile(found: Mapping[str, Any], name: str) -> ErrorProfile:
    try:
        if found["schema"] not in READ:
            raise ValueError
        sizes = Sizes(**{name: _whole(value) for name, value in found["sizes"].items()})
        shares = tuple(_number(value) for value in found["shares"])
        errors = {
            compressor: {
                storage: tuple(tuple(_number(value) for value in row) for row in rows)
                for storage, rows in by_storage.items()
            }
            for compressor, by_storage in found["errors"].items()
        }
        profile = ErrorProfile(str(found["model"]), sizes, shares, errors)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SettingError("K/V profile", name, ACCEPTED) from error
    tables = [rows for by_storage in errors.values() for rows in by_storage.values()]
    widths = {len(row) for rows in tables for row in rows}
    whole = len(widths) == 1 and widths <= {sizes.layers, sizes.layers * sizes.kv_heads}
    whole = whole and all(0 < len(rows) <= len(shares) for rows in tables)
    rising = bool(shares) and shares[-1] == 1 and all(a < b for a, b in zip((0.0, *shares), shares))
    if not tables or not whole or not rising:
        raise SettingError("K/V profile", name, ACCEPTED)
    return profile


def _number(value: Any) -> float:
    if not is_finite(value) or value < 0:
        raise ValueError
    return float(value)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError
    return value


@cache
def shipped() -> tuple[ErrorProfile, ...]:
    """Those of the bundled models."""
    return tuple(read_profile(path) for path in sorted(FOLDER.glob("*.json")))


def profile_for(spec: KVSpec, own: Sequence[str] = ()) -> tuple[ErrorProfile, bool]:
    """The profile of a model of these sizes, first of ``own`` (texts of such files), or of the bundled model with the
    most tokens; whether it is the model's."""
    sizes = Sizes.of(spec)
    found = next((one for one in (*map(parse_profile, own), *shipped()) if one.sizes == sizes), None)
    if found is not None:
        return found, True
    return max(shipped(), key=lambda one: one.sizes.tokens_per_frame), False
