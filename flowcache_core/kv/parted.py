"""A cache in parts that begin and end together: guidance branches on their devices, heads with budgets of their own."""

from __future__ import annotations

from torch import Tensor

from ..plan.base import Chunk
from .cache import KVCache


class PartedCache(KVCache):
    """Base of caches made of others. ``parts``: all of them see every chunk begin and finish."""

    parts: list[KVCache]

    def note_change(self, chunk: Chunk, change: Tensor) -> None:
        for part in self.parts:
            part.note_change(chunk, change)

    def require_finite(self) -> None:
        for part in self.parts:
            part.require_finite()

    def forget(self) -> None:
        for part in self.parts:
            part.forget()

    def release(self) -> None:
        for part in self.parts:
            part.release()
