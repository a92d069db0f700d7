"""What a rank has sent, by purpose: to be held against what a configuration should send."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Traffic:
    """Bytes that left this rank for others, by purpose: "attention", "tokens", "velocity", "finished chunks"."""

    sent: Counter[str] = field(default_factory=Counter)

    def add(self, purpose: str, tensor: Tensor, others: int) -> None:
        """``tensor`` went to each of ``others`` ranks."""
        self.sent[purpose] += tensor.numel() * tensor.element_size() * others

    @property
    def total(self) -> int:
        return sum(self.sent.values())
