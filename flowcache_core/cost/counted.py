"""FLOPs and K/V bytes of any configuration: the same engine, run with a denoiser that counts instead of computing.

A multiply-add is two operations; norms, activations and rotary embedding are left out, as in the paper's accounting.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoiser import ChunkInput, ChunkOutput
from ..engine import EngineSettings, generate
from ..errors import require
from ..kv.cache import CompressionResult
from ..kv.layout import KVLayout, capacity_tokens
from ..kv.spec import KVSpec
from ..plan.base import Chunk
from ..report.events import CacheCompressed, CachePass, Event, StepTaken, WindowPass


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

    def event(self, event: Event, *, window_attention: str = "bidirectional") -> float:
        """FLOPs behind one engine event, all branches.

        window_attention: how to count a window pass: "bidirectional" as executed, or "block-causal" as the paper does.
        """
        if isinstance(event, StepTaken) and event.context_tokens:
            return event.branches * self.forward(event.tokens, event.context_tokens)
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
    """MAGI-1. nearly_clean_from: own step from which the distilled model's extra self-only pass runs (None: never)."""

    dim: int
    ffn_dim: int
    layers: int
    kv_dim: int
    text_tokens: int = 100
    nearly_clean_from: int | None = None

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * 2 * self.kv_dim * self.layers

    def attention(self, tokens: int, context: int) -> float:
        return self.layers * 4.0 * tokens * context * self.dim

    def forward(self, tokens: int, context: int) -> float:
        d = self.dim
        linear = 2.0 * tokens * (2 * d * d + 2 * d * self.kv_dim + 2 * d * d + 2 * d * self.ffn_dim)
        text = 2.0 * self.text_tokens * d * 2 * self.kv_dim + 4.0 * tokens * self.text_tokens * d
        return self.layers * (linear + text) + self.attention(tokens, context)

    def event(self, event: Event, *, window_attention: str = "bidirectional") -> float:
        flops = super().event(event, window_attention=window_attention)
        if isinstance(event, StepTaken) and event.context_tokens and self.nearly_clean_from is not None:
            if event.step >= self.nearly_clean_from:
                flops += event.branches * self.forward(event.tokens, event.tokens)
        return flops


class CountedCache:
    """The K/V cache's bookkeeping without its tensors."""

    def __init__(self, settings: EngineSettings, tokens_per_frame: int, bytes_per_token: int) -> None:
        self.capacity_tokens = capacity_tokens(settings.plan, tokens_per_frame, settings.kv.layer_budgets(1)[0])
        self.layout = KVLayout(self.capacity_tokens)
        self.tokens_per_frame = tokens_per_frame
        self.peak_bytes = self.capacity_tokens * bytes_per_token

    @property
    def tokens(self) -> int:
        return self.layout.used_tokens

    @property
    def budget_tokens(self) -> int:
        return self.capacity_tokens

    def begin(self, chunk: Chunk) -> CompressionResult | None:
        need = self.layout.begin(chunk.index, chunk.frames * self.tokens_per_frame)
        return None if need is None else CompressionResult(chunk.index, (need,))

    def commit(self, chunk: Chunk) -> None:
        self.layout.commit(chunk.index)

    def context_tokens(self, chunk: Chunk) -> int:
        return self.layout.context_end(chunk.index)

    def release(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class CountingDenoiser:
    """Says how large the model's K/V is and returns zeros."""

    tokens_per_frame: int
    branches: int = 1

    def kv_spec(self, latents: Tensor) -> KVSpec:
        return KVSpec(1, 1, 1, self.tokens_per_frame, self.branches, 1)

    def compute(self, item: ChunkInput, branches: range, cache: object, *, keep_residual: bool = False) -> ChunkOutput:
        return ChunkOutput(torch.zeros_like(item.latents).unsqueeze(0))

    def from_residual(self, item: ChunkInput, branches: range, residual: Tensor) -> Tensor:
        return torch.zeros_like(item.latents).unsqueeze(0)

    def window(
        self, latents: Tensor, timesteps: Sequence[float], items: Sequence[ChunkInput], branches: range
    ) -> Tensor:
        return torch.zeros_like(latents).unsqueeze(0)

    def guide(self, velocity: Tensor, item: ChunkInput) -> Tensor:
        return velocity[0]

    def patch_embedding(self, item: ChunkInput) -> Tensor:
        return item.latents

    def time_modulation(self, timestep: float) -> Tensor:
        return torch.tensor([timestep])


@dataclass(frozen=True)
class Cost:
    """What a configuration costs. ``kv_bytes`` is the largest buffer of any window, all branches, two bytes a value."""

    flops: float
    kv_bytes: int
    kv_tokens: int
    computed_steps: int
    total_steps: int
    compressions: int


def count(
    shape: ModelShape,
    windows: Sequence[EngineSettings],
    tokens_per_frame: int,
    branches: int,
    *,
    window_attention: str = "bidirectional",
) -> Cost:
    """Run the engine over every window with a counting denoiser and add up what its events cost."""
    require(len(windows) > 0, "windows", len(windows), "at least one")
    events: list[Event] = []
    kv_tokens = 0
    for settings in windows:
        cache = None
        if settings.attention == "block-causal":
            cache = CountedCache(settings, tokens_per_frame, branches * shape.kv_bytes_per_token)
            kv_tokens = max(kv_tokens, cache.capacity_tokens)
        plan = settings.plan
        noise = torch.zeros(1, 1, plan.frames, 1, 1)
        prefix = noise[:, :, : plan.prefix_frames] if plan.prefix_frames else None
        denoiser = CountingDenoiser(tokens_per_frame, branches)
        generate(denoiser, settings, noise, prefix=prefix, observe=events.append, cache=cache)  # type: ignore[arg-type]
    steps = [event for event in events if isinstance(event, StepTaken)]
    return Cost(
        flops=shape.total(events, window_attention=window_attention),
        kv_bytes=kv_tokens * branches * shape.kv_bytes_per_token,
        kv_tokens=kv_tokens,
        computed_steps=sum(step.action == "compute" for step in steps),
        total_steps=len(steps),
        compressions=sum(isinstance(event, CacheCompressed) for event in events),
    )
