"""The one object that owns all K/V of a run.

Per layer there is preallocated room for ``[compressed clean | active chunks]``; how it is filled is the storage's
business (``storage/``). It never grows: with a budget its size is B_budget + B_active chunks, whatever the video's
length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ..plan.base import Chunk, Plan
from ..rows import Rows
from .figures import CacheFigures
from .layer import Ground, LayerBuffer
from .layout import (
    CompressionNeed,
    CompressionResult,
    KVLayout,
    budget_tokens,
    capacity_tokens,
    largest_chunk_frames,
)
from .prefetch import AtHand, Prefetch, Wanted, Written, lane_of
from .reposition import SinkPlace
from .settings import KVSettings
from .settled import Changes
from .size import heads_at_once, made, place_of, room_of
from .spec import KVSpec
from .storage.finite import PackedFinite
from .storage.fused import attend_packed, usable
from .storage.packed import PackedTokens
from .storage.tokens import Scratch


class KVCache(CacheFigures):
    """K/V of one run over ``plan``: begin a chunk, write and read it any number of times, commit it, release all.

    Chunks begin and finish in ascending order. ``branches`` is a contiguous range of the spec's branches; tensors are
    branch-major, ``[len(branches) * batch, heads, tokens, head_dim]``.
    """

    def __init__(self, spec: KVSpec, settings: KVSettings, plan: Plan, scratch: Scratch | None = None) -> None:
        """Allocate every buffer. SettingError when per-layer budgets do not fit the model; those of heads take
        :func:`.headed.cache_of`. scratch: what packed layers are read into, where caches share it.
        """
        settings = settings.settled(spec, plan)
        self.spec, self.settings, self.plan = spec, settings, plan
        budgets = settings.layer_budgets(spec.layers)
        capacities = {budget: capacity_tokens(plan, spec.tokens_per_frame, budget) for budget in set(budgets)}
        self.layouts = tuple(KVLayout(capacities[budget]) for budget in budgets)
        self._place = place_of(spec, settings)
        self._chunk_tokens = largest_chunk_frames(plan) * spec.tokens_per_frame
        self._chunk_starts = tuple(chunk.first_frame * spec.tokens_per_frame for chunk in plan.chunks)
        self._unwritten: dict[int, set[tuple[int, int]]] = {}
        self._finite = PackedFinite(settings.storage.name)
        self._scratch = Scratch() if scratch is None else scratch
        self._reading = self._reader()
        self._sink = SinkPlace(settings, spec, self._chunk_starts, self._chunk_tokens)
        self._changes = Changes(spec.batch, plan.frames * spec.tokens_per_frame)
        self._layers = [self._allocate(index, budget) for index, budget in enumerate(budgets)]

    def _reader(self) -> Prefetch | AtHand:
        if not self._place.apart:
            return AtHand()
        return AtHand(lane_of(self._place)) if self.settings.storage.packs else Prefetch(self._place)

    def _allocate(self, index: int, budget: float | None) -> LayerBuffer:
        spec, room = self.spec, room_of(self.spec, self.settings, self.plan, budget)
        shape = (spec.branches, spec.batch, spec.kv_heads, room.capacity)
        positions = torch.empty(shape, dtype=torch.int32, device=self._place.device) if room.shrinks else None
        tokens = made(spec, self.settings, self.plan, budget, self._scratch)
        ground = Ground(spec, self._place, self._chunk_tokens, self._chunk_starts, index, self._changes)
        compressor = self.settings.compressor
        merges = room.shrinks and compressor is not None and compressor.merges
        counts = torch.ones(shape, device=self._place.device) if merges else None
        return LayerBuffer(ground, tokens, positions, counts=counts)

    # -- a chunk's life ----------------------------------------------------------------------------------------------

    def begin(self, chunk: Chunk) -> CompressionResult | None:
        """Give ``chunk`` a slot; compresses the clean region of every layer that has no room for it."""
        self._require_memory()
        tokens = self._tokens_of(chunk)
        self._reading.drop()
        needs: list[CompressionNeed | None] = []
        for index, layout in enumerate(self.layouts):
            active = layout.active_tokens
            need = layout.begin(chunk.index, tokens)
            self._compress(index, need, active)
            needs.append(need)
        self._unwritten[chunk.index] = {
            (layer, branch) for layer in range(self.spec.layers) for branch in range(self.spec.branches)
        }
        return CompressionResult(chunk.index, tuple(needs)) if any(needs) else None

    def write(self, layer: int, branches: range, chunk: Chunk, k: Tensor, v: Tensor, rows: Rows | None = None) -> None:
        """Store ``k`` and ``v`` ``[n * batch, kv_heads, tokens, head_dim]`` in the chunk's slot.

        rows: the chunk's tokens that they are of; the others keep theirs. RuntimeError before the whole chunk has been
        written once.
        """
        buffer, (start, end) = self._buffer(layer), self.layouts[layer].span(chunk.index)
        count = end - start if rows is None else rows.count
        expected = (len(branches) * self.spec.batch, self.spec.kv_heads, count, self.spec.head_dim)
        if k.shape != expected or v.shape != expected:
            raise ValueError(f"chunk {chunk.index}: K {tuple(k.shape)} and V {tuple(v.shape)}, expected {expected}")
        if rows is not None:
            self._require_whole(layer, branches, chunk, rows)
        written = buffer.write(branches, start, end, (k.detach(), v.detach()), rows)
        self._reading.note(Written(layer, branches, start, written))
        missing = self._unwritten.get(chunk.index)
        if missing is not None:
            missing.difference_update((layer, branch) for branch in branches)
            if not missing:
                del self._unwritten[chunk.index]

    def context(self, layer: int, branches: range, chunk: Chunk, newest: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values ``[n * batch, kv_heads, context tokens, head_dim]`` that ``chunk`` may attend to, or the
        ``newest`` of them.

        Views of what is stored, valid until the next ``begin``, where it is stored as the model takes it. Copies
        otherwise: those out of packed storage are valid until the next call.
        """
        start, end = self._seen(layer, branches, chunk, newest)
        return self._read(layer, branches, chunk, start, end)

    def attend(
        self,
        layer: int,
        branches: range,
        chunk: Chunk,
        q: Tensor,
        attend: Callable[..., Tensor],
        newest: int = 0,
        fused: bool = True,
    ) -> Tensor:
        """``attend(q, keys, values)`` for the context of ``chunk``, so many heads at a time as may be unpacked at once;
        with a fourth argument, the :meth:`bias`, where there is one.

        ``q`` ``[n * batch, q_heads, tokens, head_dim]``, the output too. fused: whether packed tokens may be attended
        to as they are stored, by the kernel here in place of ``attend``.
        """
        start, end = self._seen(layer, branches, chunk, newest)
        heads, shared = self.spec.kv_heads, self.spec.heads // self.spec.kv_heads
        step = heads
        if self.settings.storage.packs:
            step = heads_at_once(self.spec, len(branches) * self.spec.batch, end - start)
        bias = self.bias(layer, branches, chunk, newest)
        if bias is not None:
            return attend(q, *self._read(layer, branches, chunk, start, end), bias)
        tokens = self._buffer(layer).tokens
        whole = fused and start == 0 and self._sink.move is None
        if whole and isinstance(tokens, PackedTokens) and usable(tokens, q):
            return attend_packed(tokens, branches, q, end)
        if step == heads:
            return attend(q, *self._read(layer, branches, chunk, start, end))
        parts: Iterator[slice] = (slice(first, min(first + step, heads)) for first in range(0, heads, step))
        outputs = [
            attend(q[:, part.start * shared : part.stop * shared], *self._read_heads(layer, branches, start, end, part))
            for part in parts
        ]
        return torch.cat(outputs, 1)

    def bias(self, layer: int, branches: range, chunk: Chunk, newest: int = 0) -> Tensor | None:
        """What is added to the logits of :meth:`context`'s keys ``[n * batch, kv_heads, context tokens]`` fp32: the
        logarithm of how many tokens each stands for. None while none stands for others."""
        buffer = self._buffer(layer)
        if buffer.counts is None or buffer.events == 0:
            return None
        start, end = self._seen(layer, branches, chunk, newest)
        clean = self.layouts[layer].clean_tokens
        counts = buffer.counts[branches.start : branches.stop, ..., start:clean].to(self._place.model_device)
        found = torch.zeros((*counts.shape[:3], end - start), device=counts.device)
        found[..., : counts.shape[-1]] = counts.log()
        return found.flatten(0, 1)

    def note_change(self, chunk: Chunk, change: Tensor) -> None:
        """How much the latents of a chunk's tokens still changed ``[batch, tokens]``, for compressors that ask."""
        self._changes.note(self._chunk_starts[chunk.index], change)

    def _read(self, layer: int, branches: range, chunk: Chunk, start: int, end: int) -> tuple[Tensor, Tensor]:
        own, _ = self.layouts[layer].span(chunk.index)
        wanted = Wanted(layer, branches, chunk.index, start, own, end)
        keys, values = self._reading.read(wanted, [one.tokens for one in self._layers], self.layouts)
        return self._sink.placed(keys, start, self.layouts[layer]), values

    def _read_heads(self, layer: int, branches: range, start: int, end: int, heads: slice) -> tuple[Tensor, Tensor]:
        keys, values = self._buffer(layer).tokens.read(branches, start, end, heads)
        return self._sink.placed(keys, start, self.layouts[layer]), values

    def _seen(self, layer: int, branches: range, chunk: Chunk, newest: int) -> tuple[int, int]:
        """First and one past the last token that ``chunk`` attends to; RuntimeError for what nobody has written."""
        self._require_memory()
        end = self.layouts[layer].context_end(chunk.index)
        for other, missing in self._unwritten.items():
            if other <= chunk.index and not missing.isdisjoint((layer, branch) for branch in branches):
                raise RuntimeError(f"chunk {chunk.index} needs chunk {other}, never computed in layer {layer}")
        return (max(0, end - newest) if newest else 0), end

    def observe(self, layer: int, branches: range, chunk: Chunk, q: Tensor) -> None:
        """Keep of the chunk's queries ``[n * batch, q_heads, tokens, head_dim]`` the rows the compressor samples."""
        buffer, compressor = self._buffer(layer), self.settings.compressor
        if compressor is None or buffer.positions is None:
            return
        rows = compressor.query_rows(self._tokens_of(chunk), self.spec.tokens_per_frame)
        if rows == 0:
            return
        sampled = q.detach()[:, :, -rows:].unflatten(0, (len(branches), self.spec.batch))
        for branch, queries in zip(branches, sampled, strict=True):
            buffer.queries[branch] = queries.clone()

    def commit(self, chunk: Chunk) -> CompressionResult | None:
        """``chunk`` is finished: what it wrote last joins the clean region, packed where the storage packs. With
        ``at_finish`` the clean region is compressed where it exceeds the budget now and somebody will read it.

        NotFiniteError when what is packed holds NaN or infinite values: at once on the CPU, elsewhere as soon as
        it is known without making anybody wait for the device.
        """
        self._require_memory()
        if self.settings.storage.packs:
            self._reading.settle()  # the host moves tokens, and packs what it has
        self._reading.drop()
        first, packed = self._chunk_starts[chunk.index], []
        for layout, buffer in zip(self.layouts, self._layers, strict=True):
            active, (start, end) = layout.active_tokens, layout.span(chunk.index)
            layout.commit(chunk.index)
            packed.append(buffer.commit(start, end, active, first))
        self._sink.committed(chunk.index)
        self._finite.note(chunk.index, packed)
        return self._trim(chunk) if self.settings.at_finish else None

    def _trim(self, chunk: Chunk) -> CompressionResult | None:
        needs: list[CompressionNeed | None] = []
        budgets = self.settings.layer_budgets(self.spec.layers)
        for index, (layout, budget) in enumerate(zip(self.layouts, budgets, strict=True)):
            active, need = layout.active_tokens, None
            if budget is not None and chunk.index != self.plan.chunks[-1].index:
                need = layout.trim(budget_tokens(self.plan, self.spec.tokens_per_frame, budget))
            self._compress(index, need, active)
            needs.append(need)
        return CompressionResult(chunk.index, tuple(needs)) if any(needs) else None

    def _compress(self, layer: int, need: CompressionNeed | None, active: int) -> None:
        if need is not None:
            assert self.settings.compressor is not None
            self._reading.settle()
            self._layers[layer].compress(self.settings.compressor, need, active)

    def require_finite(self) -> None:
        """The run is over: NotFiniteError where what was packed was not finite and nobody has said so yet."""
        self._finite.rest()

    def share(self, chunk: Chunk, source: int, target: int) -> None:
        """Give branch ``target`` what branch ``source`` holds of a finished chunk; only where :attr:`keeps_alike`, and
        where branches hold the same of all other finished chunks."""
        self.take_over(chunk, target, self.held(chunk, source))

    def held(self, chunk: Chunk, branch: int) -> Iterator[Tensor]:
        """What a branch holds of a finished chunk, for :meth:`take_over`: parts of what is stored, as it is stored."""
        self._reading.settle()
        for layout, buffer in zip(self.layouts, self._layers, strict=True):
            yield from buffer.tokens.held(branch, self._span(chunk, layout, buffer))

    def take_over(self, chunk: Chunk, branch: int, parts: Iterable[Tensor]) -> None:
        """Replace what a branch holds of a finished chunk by what another one (of another cache, of the same run on
        another rank) does; as :meth:`share`."""
        self._reading.settle()
        first = self._chunk_starts[chunk.index]
        last = first + self._tokens_of(chunk)
        coming = iter(parts)
        for layout, buffer in zip(self.layouts, self._layers, strict=True):
            own = None
            if buffer.positions is not None:
                at = buffer.positions[branch, 0, 0, : layout.clean_tokens]
                own = (at >= first) & (at < last)
            buffer.tokens.take_over(branch, self._span(chunk, layout, buffer), own, coming)

    def _span(self, chunk: Chunk, layout: KVLayout, buffer: LayerBuffer) -> slice:
        """Where a finished chunk lies; all that is kept, where something was dropped: only the device knows more."""
        first = self._chunk_starts[chunk.index]
        whole = buffer.positions is not None
        return slice(0, layout.clean_tokens) if whole else slice(first, first + self._tokens_of(chunk))

    def forget(self) -> None:
        """Drop all history, so that it can be written again. Only while no chunk is active."""
        for layout, buffer in zip(self.layouts, self._layers, strict=True):
            layout.forget()
            buffer.tokens.forget()
        self._reading.drop()
        self._sink.forget()

    def release(self) -> None:
        """Drop every tensor. The cache cannot be used afterwards."""
        self._layers.clear()
        self._unwritten.clear()
        self._finite.forget()
        self._scratch.release()
        self._reading.release()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _require_whole(self, layer: int, branches: range, chunk: Chunk, rows: Rows) -> None:
        tokens, missing = self._tokens_of(chunk), self._unwritten.get(chunk.index, set())
        if rows.tokens != tokens:
            raise ValueError(f"chunk {chunk.index}: rows of {rows.tokens} tokens, the chunk has {tokens}")
        if not missing.isdisjoint((layer, branch) for branch in branches):
            raise RuntimeError(f"chunk {chunk.index}: some tokens only, before all were computed in layer {layer}")

    def _tokens_of(self, chunk: Chunk) -> int:
        return chunk.frames * self.spec.tokens_per_frame

    def _buffer(self, layer: int) -> LayerBuffer:
        self._require_memory()
        return self._layers[layer]

    def _require_memory(self) -> None:
        if not self._layers:
            raise RuntimeError("this K/V cache has been released")
