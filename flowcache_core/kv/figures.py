"""What a cache says of itself: bytes and tokens, held and at most."""

from __future__ import annotations

from ..plan.base import Chunk, Plan
from .layer import LayerBuffer
from .layout import KVLayout
from .settings import KVSettings
from .size import peak_bytes, read_bytes
from .spec import KVSpec
from .storage.tokens import Scratch


class CacheFigures:
    """Base of the cache: its parts, and the figures that follow from them."""

    spec: KVSpec
    settings: KVSettings
    plan: Plan
    layouts: tuple[KVLayout, ...]
    _layers: list[LayerBuffer]
    _scratch: Scratch
    _chunk_tokens: int

    @property
    def keeps_alike(self) -> bool:
        """Whether all branches and heads hold the same tokens: nothing is dropped, or by place alone."""
        compressor = self.settings.compressor
        return compressor is None or compressor.by_place or all(layer.positions is None for layer in self._layers)

    @property
    def bytes(self) -> int:
        """Bytes held now: stored K/V, token positions and sampled queries."""
        return sum(layer.bytes for layer in self._layers)

    @property
    def peak_bytes(self) -> int:
        """Bytes held once every layer has seen the queries it samples; more is never held."""
        return peak_bytes(self.spec, self.settings, self.plan)

    @property
    def read_bytes(self) -> int:
        """Bytes of the buffers that packed tokens have been unpacked into so far, once for all layers."""
        return self._scratch.bytes

    def most_read_bytes(self, all_heads: bool = False) -> int:
        """The most that :attr:`read_bytes` becomes when all branches are read at once. all_heads: at once too, as
        sparse attention reads them."""
        return read_bytes(self.spec, self.settings, self.plan, all_heads)

    @property
    def tokens(self) -> int:
        """Tokens stored now, per branch and head, in the fullest layer."""
        return max(layout.used_tokens for layout in self.layouts)

    @property
    def clean_tokens(self) -> int:
        """Tokens of finished chunks stored now, per branch and head, in the fullest layer."""
        return max(layout.clean_tokens for layout in self.layouts)

    @property
    def capacity_tokens(self) -> int:
        """Tokens the largest layer's buffer holds, per branch and head."""
        return max(layout.capacity for layout in self.layouts)

    @property
    def budget_tokens(self) -> int | None:
        """Tokens of finished history that the largest budget keeps; None without a budget."""
        return round(max(self.settings.budgets) * self._chunk_tokens) if self.settings.budgets else None

    def context_tokens(self, chunk: Chunk) -> int:
        """Tokens that an active chunk attends to, itself included, in the layer with the most."""
        return max(layout.context_end(chunk.index) for layout in self.layouts)
