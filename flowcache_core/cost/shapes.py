"""What one forward of a model costs, from its sizes alone.

A multiply-add is two operations; norms, activations and rotary embedding are left out, as in the paper's accounting.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..models.magi.config import MagiConfig
from ..models.wan.config import WanConfig
from ..report.events import AttentionDensity, CachePass, Event, StepTaken, WindowPass


@dataclass(frozen=True)
class ModelShape(ABC):
    """Sizes that decide what a forward costs. All counts are FLOPs of one branch."""

    @property
    @abstractmethod
    def kv_bytes_per_token(self) -> int:
        """K and V of one token in all layers, one branch, at two bytes a value."""

    @abstractmethod
    def forward(self, tokens: int, context: int) -> float:
        """One forward of ``tokens`` that attend to ``context`` tokens (their own included)."""

    @abstractmethod
    def attention(self, tokens: int, context: int) -> float:
        """The self-attention part of :meth:`forward` that grows with the context."""

    @property
    def whole_from(self) -> int | None:
        """Own step from which a step in part is computed whole after all; None: never."""
        return None

    def notes(self, steps: int) -> list[str]:
        """What a run of ``steps`` steps is counted with beside its forwards, in sentences."""
        return []

    def event(self, event: Event, *, window_attention: str = "bidirectional") -> float:
        """FLOPs behind one engine event, all branches.

        window_attention: how to count a window pass: "bidirectional" as executed, or "block-causal" as the paper does.
        """
        if isinstance(event, StepTaken) and event.context_tokens:
            return event.branches * self.forward(event.computed_tokens, event.context_tokens)
        if isinstance(event, AttentionDensity):  # the forward itself is counted dense
            saved = 1 - event.density - event.overhead
            return -event.branches * saved * self.attention(event.tokens, event.context_tokens)
        if isinstance(event, CachePass):
            return event.branches * self.forward(event.tokens, event.context_tokens)
        if isinstance(event, WindowPass):
            return event.branches * self.window(event.chunk_tokens, window_attention)
        return 0.0

    def window(self, chunk_tokens: Sequence[int], attention: str) -> float:
        """One forward over a whole window of chunks."""
        total = sum(chunk_tokens)
        if attention == "bidirectional":
            return self.forward(total, total)
        context = [sum(chunk_tokens[: i + 1]) for i in range(len(chunk_tokens))]
        causal = sum(self.attention(n, c) for n, c in zip(chunk_tokens, context, strict=True))
        return self.forward(total, total) - self.attention(total, total) + causal

    def total(self, events: Iterable[Event], *, window_attention: str = "bidirectional") -> float:
        return sum(self.event(event, window_attention=window_attention) for event in events)


@dataclass(frozen=True)
class WanShape(ModelShape):
    """Wan 2.1 text-to-video and SkyReels-V2."""

    dim: int
    ffn_dim: int
    layers: int
    text_tokens: int = 512
    text_dim: int = 4096
    patch_values: int = 64

    @classmethod
    def of(cls, config: WanConfig, text_tokens: int = 512) -> WanShape:
        values = config.in_dim * math.prod(config.patch)
        return cls(config.dim, config.ffn_dim, config.num_layers, text_tokens, config.text_dim, values)

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * 2 * self.dim * self.layers

    def attention(self, tokens: int, context: int) -> float:
        return self.layers * 4.0 * tokens * context * self.dim

    def forward(self, tokens: int, context: int) -> float:
        d = self.dim
        linear = 12.0 * tokens * d * d + 4.0 * tokens * d * self.ffn_dim
        text = 4.0 * self.text_tokens * d * d + 4.0 * tokens * self.text_tokens * d
        ends = 4.0 * tokens * self.patch_values * d + 2.0 * self.text_tokens * (self.text_dim * d + d * d)
        return self.layers * (linear + text) + self.attention(tokens, context) + ends


@dataclass(frozen=True)
class MagiShape(ModelShape):
    """MAGI-1. nearly_clean_from: own step from which the distilled model's extra self-only pass runs (None: never).
    gated: the feed-forward has a third matrix (24B).
    """

    dim: int
    ffn_dim: int
    layers: int
    kv_dim: int
    text_tokens: int = 100
    nearly_clean_from: int | None = None
    gated: bool = False

    @classmethod
    def of(cls, config: MagiConfig, nearly_clean_from: int | None = None, text_tokens: int = 100) -> MagiShape:
        width = config.kv_heads * config.head_dim
        return cls(config.dim, config.ffn_dim, config.num_layers, width, text_tokens, nearly_clean_from, config.gated)

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * 2 * self.kv_dim * self.layers

    def attention(self, tokens: int, context: int) -> float:
        return self.layers * 4.0 * tokens * context * self.dim

    def forward(self, tokens: int, context: int) -> float:
        d = self.dim
        feed = (3 if self.gated else 2) * d * self.ffn_dim
        linear = 2.0 * tokens * (2 * d * d + 2 * d * self.kv_dim + 2 * d * d + feed)
        text = 2.0 * self.text_tokens * d * 2 * self.kv_dim + 4.0 * tokens * self.text_tokens * d
        return self.layers * (linear + text) + self.attention(tokens, context)

    @property
    def whole_from(self) -> int | None:
        return self.nearly_clean_from

    def notes(self, steps: int) -> list[str]:
        if self.nearly_clean_from is None:
            return []
        return [f"includes the nearly-clean pass of own steps {self.nearly_clean_from}..{steps - 1}"]

    def event(self, event: Event, *, window_attention: str = "bidirectional") -> float:
        flops = super().event(event, window_attention=window_attention)
        whole = isinstance(event, StepTaken) and event.context_tokens and event.action == "compute"
        if isinstance(event, StepTaken) and whole and self.nearly_clean_from is not None:
            if event.step >= self.nearly_clean_from:
                flops += event.branches * self.forward(event.tokens, event.tokens)
        return flops
