"""K/V that the host's AR sampler cannot hold itself: packed, in another number format or on another device.

The host writes and reads a layer's buffers by slices of tokens, at its cursor and up to it, and knows nothing else of
them. So what it is given are not tensors but the two ends of a layer of the core's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ....flowcache_core.kv.cache import KVCache
from ....flowcache_core.kv.layout import CompressionResult
from ....flowcache_core.kv.settings import KVSettings
from ....flowcache_core.kv.spec import KVSpec
from ....flowcache_core.plan.base import Chunk, Plan
from ..replaced import replaced
from ..wan.rope import exact_positions
from .kv import HostKV, LayerCache, overheard


@dataclass
class End:
    """What the host takes for a layer's ``k`` or ``v``. Keys come first, both in writing and in reading."""

    kv: StoredHostKV
    layer: int
    keys: bool

    def __setitem__(self, place: tuple[slice, slice], value: Tensor) -> None:
        self.kv.write(self.layer, place[1], value.transpose(1, 2), keys=self.keys)

    def __getitem__(self, place: tuple[slice, slice]) -> Tensor:
        return self.kv.read(self.layer, place[1], keys=self.keys).transpose(1, 2).contiguous()


class StoredHostKV:
    """As :class:`.kv.HostKV`, over the core's cache."""

    def __init__(self, spec: KVSpec, settings: KVSettings, plan: Plan) -> None:
        self.cache = KVCache(spec, settings, plan)
        self.spec, self.settings, self.plan = spec, self.cache.settings, plan
        self.chunk: Chunk | None = None
        self._pending: Tensor | None = None

    @property
    def compresses(self) -> bool:
        return any(layout.capacity < self.plan.frames * self.spec.tokens_per_frame for layout in self.cache.layouts)

    @property
    def capacity_tokens(self) -> int:
        return self.cache.capacity_tokens

    @property
    def budget_tokens(self) -> int | None:
        return self.cache.budget_tokens

    @property
    def tokens(self) -> int:
        return self.cache.tokens

    def context_tokens(self, chunk: Chunk) -> int:
        return self.cache.context_tokens(chunk)

    # -- a chunk's life ------------------------------------------------------------------------------------------------

    def begin(self, chunk: Chunk, caches: Sequence[LayerCache]) -> CompressionResult | None:
        result, self.chunk = self.cache.begin(chunk), chunk
        for layout, cache in zip(self.cache.layouts, caches, strict=True):
            cache["end"] = layout.span(chunk.index)[0]
        return result

    def advance(self, chunk: Chunk, caches: Sequence[LayerCache]) -> None:
        for cache in caches:
            cache["end"] += chunk.frames * self.spec.tokens_per_frame

    def commit(self, chunk: Chunk, caches: Sequence[LayerCache]) -> CompressionResult | None:
        result = self.cache.commit(chunk)
        if chunk.index == self.plan.chunks[-1].index:
            self.cache.require_finite()
        return result

    def note_change(self, chunk: Chunk, change: Tensor) -> None:
        self.cache.note_change(chunk, change)

    def release(self) -> None:
        self.cache.release()

    def write(self, layer: int, tokens: slice, value: Tensor, *, keys: bool) -> None:
        chunk = self._at(layer, tokens.stop)
        if keys:
            self._pending = value
            return
        assert self._pending is not None
        self.cache.write(layer, range(1), chunk, self._pending, value)
        self._pending = None

    def read(self, layer: int, tokens: slice, *, keys: bool) -> Tensor:
        """Both are made at once; the values wait until they are asked for."""
        chunk = self._at(layer, tokens.stop)
        if keys:
            found, self._pending = self.cache.context(layer, range(1), chunk)
            return found
        assert self._pending is not None
        found, self._pending = self._pending, None
        return found

    def _at(self, layer: int, end: int) -> Chunk:
        """The chunk at work; RuntimeError where the host's cursor is not where that chunk is."""
        assert self.chunk is not None
        expected = self.cache.layouts[layer].context_end(self.chunk.index)
        if end != expected:
            raise RuntimeError(f"layer {layer}: host at token {end}, chunk {self.chunk.index} ends at {expected}")
        return self.chunk

    # -- on the host's model -------------------------------------------------------------------------------------------

    @contextmanager
    def attached(self, transformer: Any) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(replaced(transformer, "init_kv_caches", self._allocating))
            if self.compresses:
                stack.enter_context(exact_positions(transformer))
            yield

    def _allocating(self, original: Callable[..., list[LayerCache]]) -> Callable[..., list[LayerCache]]:
        def init_kv_caches(batch_size: int, max_seq_len: int, device: Any, dtype: torch.dtype) -> list[LayerCache]:
            layers = range(self.spec.layers)
            return [{"k": End(self, layer, True), "v": End(self, layer, False), "end": 0} for layer in layers]

        return init_kv_caches

    @contextmanager
    def listening(self, transformer: Any, chunk: Chunk) -> Iterator[None]:
        """Keep the queries of this pass that the compressor samples."""
        with ExitStack() as stack:
            for layer, block in enumerate(transformer.blocks):
                hear = partial(self.cache.observe, layer, range(1), chunk)
                stack.enter_context(replaced(block, "forward", partial(overheard, hear=hear)))
            yield


def host_kv(spec: KVSpec, settings: KVSettings, plan: Plan) -> HostKV | StoredHostKV:
    """The host's own buffers where they can hold it: plain, in the model's format and beside it."""
    chosen = settings.settled(spec, plan)
    apart = chosen.device is not None and torch.device(chosen.device).type != torch.device(spec.device).type
    stored = chosen.storage.packs or chosen.dtype not in (None, spec.dtype) or apart
    return StoredHostKV(spec, chosen, plan) if stored else HostKV(spec, chosen, plan)
