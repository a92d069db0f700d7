"""FLOPs and K/V bytes of any configuration: the same engine, run with a denoiser that counts instead of computing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..denoiser import ChunkInput, ChunkOutput
from ..engine import EngineSettings, generate
from ..errors import require
from ..kv.layout import CompressionResult, KVLayout, budget_tokens, capacity_tokens
from ..kv.spec import KVSpec
from ..plan.base import Chunk
from ..report.events import CacheCompressed, Event, StepTaken
from ..rows import Rows
from ..sparse.forward import SparseForward
from .shapes import ModelShape

PARTED = 20  # latent pixels of a side where steps are computed in part: shares of a chunk come out to 1 %


class CountedCache:
    """The K/V cache's bookkeeping without its tensors."""

    def __init__(self, settings: EngineSettings, tokens_per_frame: int, bytes_per_token: int) -> None:
        self.capacity_tokens = capacity_tokens(settings.plan, tokens_per_frame, settings.kv.layer_budgets(1)[0])
        self.layout = KVLayout(self.capacity_tokens)
        budget, self.last = settings.kv.layer_budgets(1)[0], settings.plan.chunks[-1].index
        trims = settings.kv.at_finish and budget is not None
        self.kept = budget_tokens(settings.plan, tokens_per_frame, budget or 0) if trims else None
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

    def commit(self, chunk: Chunk) -> CompressionResult | None:
        self.layout.commit(chunk.index)
        need = None if self.kept is None or chunk.index == self.last else self.layout.trim(self.kept)
        return None if need is None else CompressionResult(chunk.index, (need,))

    def context_tokens(self, chunk: Chunk) -> int:
        return self.layout.context_end(chunk.index)

    def note_change(self, chunk: Chunk, change: Tensor) -> None:
        """There are no values."""

    def require_finite(self) -> None:
        """There are no values."""

    def release(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class CountingDenoiser:
    """Says how large the model's K/V is and returns zeros. whole_from: see :attr:`.shapes.ModelShape.whole_from`."""

    tokens_per_frame: int
    branches: int = 1
    whole_from: int | None = None

    def kv_spec(self, latents: Tensor) -> KVSpec:
        return KVSpec(1, 1, 1, self.tokens_per_frame, self.branches, 1)

    def compute(
        self, item: ChunkInput, cache: object, *, keep_residual: bool = False, rows: Rows | None = None
    ) -> ChunkOutput:
        if isinstance(item.sparse, SparseForward):
            assert isinstance(cache, CountedCache)
            item.sparse.count(cache.context_tokens(item.chunk))
        whole = self.whole_from is not None and item.step >= self.whole_from
        return ChunkOutput(torch.zeros_like(item.latents).unsqueeze(0), rows=None if whole else rows)

    def joint(self, items: Sequence[ChunkInput], cache: object) -> Sequence[ChunkOutput]:
        return [ChunkOutput(torch.zeros_like(item.latents).unsqueeze(0)) for item in items]

    def encode(self, item: ChunkInput, cache: object) -> None:
        """Nothing is written."""

    def from_residual(self, item: ChunkInput, residual: Tensor) -> Tensor:
        return torch.zeros_like(item.latents).unsqueeze(0)

    def window(self, latents: Tensor, timesteps: Sequence[float], items: Sequence[ChunkInput]) -> Tensor:
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
    part_steps: int = 0


def count(
    shape: ModelShape,
    windows: Sequence[EngineSettings],
    tokens_per_frame: int,
    branches: int,
    *,
    window_attention: str = "bidirectional",
) -> Cost:
    """Run the engine over every window with a counting denoiser and add up what its events cost."""
    events, kv_tokens = counted_events(shape, windows, tokens_per_frame, branches)
    steps = [event for event in events if isinstance(event, StepTaken)]
    return Cost(
        flops=shape.total(events, window_attention=window_attention),
        kv_bytes=kv_tokens * branches * shape.kv_bytes_per_token,
        kv_tokens=kv_tokens,
        computed_steps=sum(step.action == "compute" for step in steps),
        total_steps=len(steps),
        compressions=sum(isinstance(event, CacheCompressed) for event in events),
        part_steps=sum(step.action == "part" for step in steps),
    )


def counted_events(
    shape: ModelShape, windows: Sequence[EngineSettings], tokens_per_frame: int, branches: int
) -> tuple[list[Event], int]:
    """All events of the windows' runs, and the most K/V tokens that a layer's buffer holds in one of them. Masks that
    serve again are counted as if each step made its own: how long one serves depends on the video.
    """
    require(len(windows) > 0, "windows", len(windows), "at least one")
    events: list[Event] = []
    kv_tokens = 0
    for settings in map(_masks_anew, windows):
        cache = None
        if settings.attention != "bidirectional":
            cache = CountedCache(settings, tokens_per_frame, branches * shape.kv_bytes_per_token)
            kv_tokens = max(kv_tokens, cache.capacity_tokens)
        plan = settings.plan
        side = 1 if settings.policy.parts == "never" else PARTED
        noise = torch.zeros(1, 1, plan.frames, side, side)
        prefix = noise[:, :, : plan.prefix_frames] if plan.prefix_frames else None
        denoiser = CountingDenoiser(tokens_per_frame, branches, shape.whole_from)
        generate(denoiser, settings, noise, prefix=prefix, observe=events.append, cache=cache)  # type: ignore[arg-type]
    return events, kv_tokens


def _masks_anew(settings: EngineSettings) -> EngineSettings:
    sparse = settings.sparse
    return settings if sparse is None or sparse.reuse is None else replace(settings, sparse=replace(sparse, reuse=None))
