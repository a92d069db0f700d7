"""A K/V budget inside the host's own AR sampler: smaller buffers, compressed between chunks.

The host keeps one ``{"k", "v", "end"}`` per layer, tensors ``[B, tokens, heads, head_dim]`` with K after RoPE. ``end``
is a write cursor and nothing else, so what lies before it may be compacted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....flowcache_core.kv.compressor import Region
from ....flowcache_core.kv.layout import (
    CompressionNeed,
    CompressionResult,
    KVLayout,
    budget_tokens,
    largest_chunk_frames,
)
from ....flowcache_core.kv.reposition import reposition_of
from ....flowcache_core.kv.settings import KVSettings
from ....flowcache_core.kv.settled import Changes
from ....flowcache_core.kv.sink_window import SinkWindow
from ....flowcache_core.kv.size import room_of
from ....flowcache_core.kv.spec import KVSpec
from ....flowcache_core.plan.base import Chunk, Plan
from ..replaced import replaced
from ..wan.rope import exact_positions

LayerCache = dict[str, Any]
"""One layer's entry in the host's list."""


@dataclass
class Layer:
    """What the host does not keep: positions ``[B, heads, capacity]`` of the clean tokens and queries
    ``[B, heads, rows, head_dim]`` of the newest clean pass, both only where a compression can ever happen; sink: its
    keys ``[B, heads, tokens, head_dim]`` where they stand in the video, once they are stored elsewhere.
    """

    layout: KVLayout
    positions: Tensor | None
    queries: Tensor | None = None
    events: int = 0
    sink: Tensor | None = None

    def hear(self, rows: int, q: Tensor) -> None:
        """Keep the last ``rows`` of ``q [B, heads, tokens, head_dim]``."""
        self.queries = q[:, :, -rows:].clone()


class HostKV:
    """One run's K/V in the host's sampler: layout, the tokens' positions and the queries that compressors want."""

    def __init__(self, spec: KVSpec, settings: KVSettings, plan: Plan) -> None:
        settings = settings.settled(spec, plan)
        self.spec, self.settings, self.plan = spec, settings, plan
        tokens = spec.tokens_per_frame
        self.chunk_tokens = largest_chunk_frames(plan) * tokens
        self.move = reposition_of(settings, spec)
        self.chunk_starts = tuple(chunk.first_frame * tokens for chunk in plan.chunks)
        self.changes = Changes(spec.batch, plan.frames * tokens)
        self.layers = [self._layer(budget) for budget in settings.layer_budgets(spec.layers)]

    def _layer(self, budget: float | None) -> Layer:
        room = room_of(self.spec, self.settings, self.plan, budget)
        shape = (self.spec.batch, self.spec.kv_heads, room.capacity)
        positions = torch.empty(shape, dtype=torch.int32, device=self.spec.device) if room.shrinks else None
        return Layer(KVLayout(room.capacity), positions)

    # -- figures -------------------------------------------------------------------------------------------------------

    @property
    def compresses(self) -> bool:
        """Whether some layer drops tokens."""
        return any(layer.positions is not None for layer in self.layers)

    @property
    def capacity_tokens(self) -> int:
        return max(layer.layout.capacity for layer in self.layers)

    @property
    def budget_tokens(self) -> int | None:
        budgets = self.settings.budgets
        return round(max(budgets) * self.chunk_tokens) if budgets else None

    @property
    def tokens(self) -> int:
        """Tokens stored now, per head, in the fullest layer."""
        return max(layer.layout.used_tokens for layer in self.layers)

    def context_tokens(self, chunk: Chunk) -> int:
        return max(layer.layout.context_end(chunk.index) for layer in self.layers)

    # -- a chunk's life ------------------------------------------------------------------------------------------------

    def begin(self, chunk: Chunk, caches: Sequence[LayerCache]) -> CompressionResult | None:
        """Before a chunk's first call: make room where it does not fit, and set the host's cursor to what is left."""
        needs: list[CompressionNeed | None] = []
        for index, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            needs.append(self._give_way(index, layer.layout.begin(chunk.index, self._tokens(chunk)), cache))
        return CompressionResult(chunk.index, tuple(needs)) if any(needs) else None

    def advance(self, chunk: Chunk, caches: Sequence[LayerCache]) -> None:
        """Move the cursors as a call would have: the sampler takes a chunk's tokens off after every step."""
        for cache in caches:
            cache["end"] += self._tokens(chunk)

    def commit(self, chunk: Chunk, caches: Sequence[LayerCache]) -> CompressionResult | None:
        """After the pass that leaves the chunk's final K/V; with ``at_finish`` what exceeds the budget goes now."""
        first = self.chunk_starts[chunk.index]
        for layer in self.layers:
            start, end = layer.layout.span(chunk.index)
            layer.layout.commit(chunk.index)
            if layer.positions is not None:
                own = torch.arange(first, first + end - start, dtype=torch.int32, device=layer.positions.device)
                layer.positions[..., start:end] = own
        if not self.settings.at_finish or chunk.index == self.plan.chunks[-1].index:
            return None
        needs: list[CompressionNeed | None] = []
        budgets = self.settings.layer_budgets(self.spec.layers)
        for index, (layer, budget, cache) in enumerate(zip(self.layers, budgets, caches, strict=True)):
            kept = None if budget is None else budget_tokens(self.plan, self.spec.tokens_per_frame, budget)
            needs.append(self._give_way(index, None if kept is None else layer.layout.trim(kept), cache))
        return CompressionResult(chunk.index, tuple(needs)) if any(needs) else None

    def note_change(self, chunk: Chunk, change: Tensor) -> None:
        """How much a finished chunk's tokens still changed ``[B, tokens]``, for compressors that ask."""
        self.changes.note(self.chunk_starts[chunk.index], change)

    def release(self) -> None:
        """Drop every tensor."""
        self.layers.clear()

    def _tokens(self, chunk: Chunk) -> int:
        return chunk.frames * self.spec.tokens_per_frame

    def _give_way(self, index: int, need: CompressionNeed | None, cache: LayerCache) -> CompressionNeed | None:
        """Drop what is too much in a layer and set the host's cursor to what is left."""
        if need is not None:
            self._compress(index, need, cache)
            cache["end"] = need.after
        return need

    def _compress(self, index: int, need: CompressionNeed, cache: LayerCache) -> None:
        """Gather what the compressor keeps, head by head, to the front of the layer's buffers."""
        layer, compressor = self.layers[index], self.settings.compressor
        assert compressor is not None and layer.positions is not None
        positions = layer.positions[..., : need.before]
        region = Region(
            keys=cache["k"][:, : need.before].transpose(1, 2),
            values=cache["v"][:, : need.before].transpose(1, 2),
            queries=layer.queries,
            positions=positions,
            tokens_per_frame=self.spec.tokens_per_frame,
            chunk_tokens=self.chunk_tokens,
            chunk_starts=self.chunk_starts,
            layer=index,
            event=layer.events,
            change=self.changes.at(positions),
        )
        kept = compressor.keep(region, need.after)
        layer.positions[..., : need.after] = positions.gather(-1, kept)
        rows = kept.transpose(1, 2).unsqueeze(-1)
        for stored in (cache["k"], cache["v"]):
            stored[:, : need.after] = stored.gather(1, rows.expand(*rows.shape[:3], stored.shape[-1]))
        layer.events += 1
        if self.move is not None:
            self._move_sink(layer, cache, need.after)

    def _move_sink(self, layer: Layer, cache: LayerCache, after: int) -> None:
        """Store the sink's keys next to the window's, for every call to come."""
        compressor, oldest = self.settings.compressor, self._next_start(layer.layout)
        assert isinstance(compressor, SinkWindow) and self.move is not None
        keys = cache["k"][:, : min(compressor.sink_tokens(self.chunk_tokens), after)].transpose(1, 2)
        if layer.sink is None:
            layer.sink = keys.clone()
        keys.copy_(self.move(layer.sink, (oldest - after) // self.spec.tokens_per_frame))

    def _next_start(self, layout: KVLayout) -> int:
        """First token in the video of the chunk that reads next: the oldest active one, or the first not begun."""
        return self.chunk_starts[layout.active[0] if layout.active else layout.newest + 1]

    # -- on the host's model -------------------------------------------------------------------------------------------

    @contextmanager
    def attached(self, transformer: Any) -> Iterator[None]:
        """While the sampler runs: its buffers get our size; nothing is left on the model afterwards."""
        with ExitStack() as stack:
            stack.enter_context(replaced(transformer, "init_kv_caches", self._allocating))
            if self.compresses:
                # Only where the result differs from the host's anyway: its own positions are wrong in long bf16 videos.
                stack.enter_context(exact_positions(transformer))
            yield

    def _allocating(self, original: Callable[..., list[LayerCache]]) -> Callable[..., list[LayerCache]]:
        def init_kv_caches(batch_size: int, max_seq_len: int, device: Any, dtype: torch.dtype) -> list[LayerCache]:
            caches = original(batch_size, 0, device, self.spec.dtype)
            for layer, cache in zip(self.layers, caches, strict=True):
                for name in ("k", "v"):
                    batch, _, *head = cache[name].shape
                    cache[name] = cache[name].new_zeros(batch, layer.layout.capacity, *head)
            return caches

        return init_kv_caches

    @contextmanager
    def listening(self, transformer: Any, chunk: Chunk) -> Iterator[None]:
        """Keep the queries of this pass that the compressor samples: the last rows of the chunk."""
        compressor, tokens = self.settings.compressor, self._tokens(chunk)
        rows = 0 if compressor is None else compressor.query_rows(tokens, self.spec.tokens_per_frame)
        with ExitStack() as stack:
            for layer, block in zip(self.layers, transformer.blocks, strict=True):
                if rows and layer.positions is not None:
                    stack.enter_context(replaced(block, "forward", partial(overheard, hear=partial(layer.hear, rows))))
            yield


def overheard(forward: Callable[..., Tensor], hear: Callable[[Tensor], None]) -> Callable[..., Tensor]:
    """``forward`` of a block that has ``hear`` the queries of its self-attention ``[B, heads, tokens, head_dim]``."""

    def listening(*args: Any, transformer_options: Any = None, **kwargs: Any) -> Tensor:
        options = dict(transformer_options or {})
        previous = options.get("optimized_attention_override")
        heard = False

        def attention(func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, **rest: Any) -> Tensor:
            nonlocal heard
            if not heard:  # a block runs its self-attention first
                hear(q.unflatten(-1, (heads, -1)).transpose(1, 2))
                heard = True
            run = func if previous is None else lambda *a, **kw: previous(func, *a, **kw)
            return run(q, k, v, heads=heads, **rest)

        return forward(*args, transformer_options={**options, "optimized_attention_override": attention}, **kwargs)

    return listening
