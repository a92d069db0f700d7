"""How many ranks share a run, and what: guidance branches times attention heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import listed, require, require_count
from ..fields import require_types

MOST_RANKS = 256


@dataclass(frozen=True)
class MeshShape:
    """cfg: ranks among which the guidance branches are shared out. heads: ranks among which the attention heads are."""

    cfg: int = 1
    heads: int = 1

    def __post_init__(self) -> None:
        require_types(self)
        require_count("ranks for branches", self.cfg, minimum=1, maximum=MOST_RANKS)
        require_count("ranks for heads", self.heads, minimum=1, maximum=MOST_RANKS)

    @property
    def size(self) -> int:
        return self.cfg * self.heads

    def __str__(self) -> str:
        return f"{self.cfg}x{self.heads}"


@dataclass(frozen=True)
class Shareable:
    """What of a model ranks can share: ``branches`` guidance forwards, ``heads`` query heads, ``kv_heads`` of keys."""

    branches: int
    heads: int
    kv_heads: int

    @property
    def cfg_counts(self) -> tuple[int, ...]:
        return tuple(range(1, self.branches + 1))

    @property
    def head_counts(self) -> tuple[int, ...]:
        common = math.gcd(self.heads, self.kv_heads)
        return tuple(count for count in range(1, common + 1) if common % count == 0)

    def __str__(self) -> str:
        heads = f"{self.heads} heads" if self.heads == self.kv_heads else f"{self.heads} and {self.kv_heads} heads"
        return f"{listed(self.cfg_counts, 8)} for {self.branches} branches, {listed(self.head_counts, 20)} for {heads}"

    def shapes(self, ranks: int) -> list[MeshShape]:
        """All that ``ranks`` ranks can be, most ranks for branches first: they exchange the least."""
        pairs = [(cfg, ranks // cfg) for cfg in reversed(self.cfg_counts) if ranks % cfg == 0]
        return [MeshShape(cfg, heads) for cfg, heads in pairs if heads in self.head_counts]

    def fit(self, ranks: int, asked: MeshShape | None = None) -> MeshShape:
        """The shape for ``ranks`` ranks, or ``asked`` when it fits. SettingError with the numbers that do."""
        require_count("ranks", ranks, minimum=1, maximum=MOST_RANKS)
        if asked is not None:
            require(asked.size == ranks, "mesh", str(asked), f"branches x heads that make {ranks} ranks")
            fits = asked.cfg in self.cfg_counts and asked.heads in self.head_counts
            require(fits, "mesh", str(asked), f"branches x heads: {self}")
            return asked
        found = self.shapes(ranks)
        counts = sorted({cfg * heads for cfg in self.cfg_counts for heads in self.head_counts})
        require(len(found) > 0, "ranks", ranks, f"{listed(counts, 40)} ({self})")
        return found[0]


def mesh_from_text(text: str) -> MeshShape:
    """``2x4``: two ranks for branches times four for heads. SettingError for anything else."""
    parts: Sequence[str] = text.split("x")
    whole = len(parts) == 2 and all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts)
    require(whole, "mesh", text, "BRANCHESxHEADS, such as 2x1 or 1x4")
    return MeshShape(int(parts[0]), int(parts[1]))
