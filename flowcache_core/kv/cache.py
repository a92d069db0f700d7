"""The one object that owns all K/V of a run.

Per layer there is one preallocated buffer ``[compressed clean | active chunks]``, so what a chunk may attend to is one
view of it. It never grows: with a budget its size is B_budget + B_active chunks whatever the video's length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..plan.base import Chunk, Plan
from ..rows import Rows
from .compressor import Region
from .layout import CompressionNeed, KVLayout, capacity_tokens, largest_chunk_frames
from .settings import KVSettings
from .size import peak_bytes
from .spec import KVSpec


@dataclass(frozen=True)
class CompressionResult:
    """What made room for a chunk: per layer the tokens of the clean region before and after, None where it fitted."""

    chunk: int
    layers: tuple[CompressionNeed | None, ...]

    @property
    def largest(self) -> CompressionNeed:
        """The layer that held the most tokens."""
        return max((need for need in self.layers if need is not None), key=lambda need: need.before)

    @property
    def tokens_before(self) -> int:
        return self.largest.before

    @property
    def tokens_after(self) -> int:
        return self.largest.after


@dataclass
class LayerBuffer:
    """Tensors of one layer. ``keys`` and ``values`` ``[branches, batch, kv_heads, capacity, head_dim]``; ``positions``
    ``[branches, batch, kv_heads, capacity]`` of the clean tokens, only where a compression can ever happen; ``queries``
    per branch ``[batch, q_heads, rows, head_dim]``, the last rows of the chunk computed last.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor | None
    queries: dict[int, Tensor]
    events: int = 0

    @property
    def bytes(self) -> int:
        fixed = (self.keys, self.values) if self.positions is None else (self.keys, self.values, self.positions)
        return sum(tensor.numel() * tensor.element_size() for tensor in (*fixed, *self.queries.values()))


class KVCache:
    """K/V of one run over ``plan``: begin a chunk, write and read it any number of times, commit it, release all.

    Chunks begin and finish in ascending order. ``branches`` is a contiguous range of the spec's branches; tensors are
    branch-major, ``[len(branches) * batch, heads, tokens, head_dim]``.
    """

    def __init__(self, spec: KVSpec, settings: KVSettings, plan: Plan) -> None:
        """Allocate every buffer. SettingError when per-layer budgets do not fit the model."""
        self.spec, self.settings, self.plan = spec, settings, plan
        budgets = settings.layer_budgets(spec.layers)
        capacities = {budget: capacity_tokens(plan, spec.tokens_per_frame, budget) for budget in set(budgets)}
        self.layouts = tuple(KVLayout(capacities[budget]) for budget in budgets)
        self._device = torch.empty(0, device=spec.device).device  # "cuda" becomes "cuda:0", comparable to a tensor's
        self._chunk_tokens = largest_chunk_frames(plan) * spec.tokens_per_frame
        self._chunk_starts = tuple(chunk.first_frame * spec.tokens_per_frame for chunk in plan.chunks)
        self._unwritten: dict[int, set[tuple[int, int]]] = {}
        self._layers = [self._allocate(layout.capacity) for layout in self.layouts]

    def _allocate(self, capacity: int) -> LayerBuffer:
        spec = self.spec
        device = torch.device(self.settings.device or spec.device)
        pinned = device.type == "cpu" and self._device.type == "cuda"
        shape = (spec.branches, spec.batch, spec.kv_heads, capacity)
        dtype = self.settings.dtype or spec.dtype
        keys, values = (
            torch.empty(*shape, spec.head_dim, dtype=dtype, device=device, pin_memory=pinned) for _ in range(2)
        )
        compresses = capacity < self.plan.frames * spec.tokens_per_frame
        positions = torch.empty(shape, dtype=torch.int32, device=device) if compresses else None
        return LayerBuffer(keys, values, positions, {})

    # -- a chunk's life ----------------------------------------------------------------------------------------------

    def begin(self, chunk: Chunk) -> CompressionResult | None:
        """Give ``chunk`` a slot; compresses the clean region of every layer that has no room for it."""
        self._require_memory()
        tokens = self._tokens_of(chunk)
        needs: list[CompressionNeed | None] = []
        for index, layout in enumerate(self.layouts):
            active = layout.active_tokens
            need = layout.begin(chunk.index, tokens)
            if need is not None:
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
        for target, source in ((buffer.keys, k.detach()), (buffer.values, v.detach())):
            if target.dtype == torch.float8_e4m3fn:
                largest = torch.finfo(target.dtype).max
                source = source.clamp(-largest, largest)  # older torch turns what exceeds the range into NaN
            slot = target[branches.start : branches.stop, ..., start:end, :]
            source = source.unflatten(0, (len(branches), self.spec.batch))
            if rows is None:
                slot.copy_(source)
            else:
                write_rows(slot, source, rows)
        missing = self._unwritten.get(chunk.index)
        if missing is not None:
            missing.difference_update((layer, branch) for branch in branches)
            if not missing:
                del self._unwritten[chunk.index]

    def context(self, layer: int, branches: range, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Keys and values ``[n * batch, kv_heads, context tokens, head_dim]`` that ``chunk`` may attend to.

        Views of the buffer, valid until the next ``begin``; converted copies when the cache's dtype or device is not
        the model's.
        """
        buffer, end = self._buffer(layer), self.layouts[layer].context_end(chunk.index)
        for other, missing in self._unwritten.items():
            if other <= chunk.index and not missing.isdisjoint((layer, branch) for branch in branches):
                raise RuntimeError(f"chunk {chunk.index} needs chunk {other}, never computed in layer {layer}")
        part = slice(branches.start, branches.stop)
        keys, values = (t[part, ..., :end, :].flatten(0, 1) for t in (buffer.keys, buffer.values))
        return self._for_model(keys), self._for_model(values)

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

    def commit(self, chunk: Chunk) -> None:
        """``chunk`` is finished: what it wrote last joins the clean region, where it lies."""
        self._require_memory()
        first = self._chunk_starts[chunk.index]
        for layout, buffer in zip(self.layouts, self._layers, strict=True):
            start, end = layout.span(chunk.index)
            layout.commit(chunk.index)
            if buffer.positions is not None:
                own = torch.arange(first, first + end - start, dtype=torch.int32, device=buffer.positions.device)
                buffer.positions[..., start:end] = own

    def share(self, chunk: Chunk, source: int, target: int) -> None:
        """Give branch ``target`` what branch ``source`` holds of a finished chunk; only where :attr:`keeps_alike`."""
        self.take_over(chunk, target, self.held(chunk, source))

    def held(self, chunk: Chunk, branch: int) -> Iterator[Tensor]:
        """What a branch holds of a finished chunk, for :meth:`take_over`: parts of the buffers as they are stored."""
        first = self._chunk_starts[chunk.index]
        last = first + self._tokens_of(chunk)
        for layout, buffer in zip(self.layouts, self._layers, strict=True):
            for stored in (buffer.keys, buffer.values):
                raw = stored.view(torch.uint8) if stored.element_size() == 1 else stored  # fp8 cannot be selected
                # All that is kept, where something was dropped: how many tokens of the chunk, only the device knows.
                span = slice(first, last) if buffer.positions is None else slice(0, layout.clean_tokens)
                yield raw[branch, ..., span, :]

    def take_over(self, chunk: Chunk, branch: int, parts: Iterable[Tensor]) -> None:
        """Replace what a branch holds of a finished chunk by what another one (of another cache, of the same run on
        another rank) does; only where :attr:`keeps_alike`."""
        first = self._chunk_starts[chunk.index]
        last = first + self._tokens_of(chunk)
        layers = [layer for layer in zip(self.layouts, self._layers, strict=True) for _ in ("keys", "values")]
        for (layout, buffer), own, part in zip(layers, self.held(chunk, branch), parts, strict=True):
            if buffer.positions is not None:
                at = buffer.positions[branch, 0, 0, : layout.clean_tokens]
                part = torch.where(((at >= first) & (at < last)).unsqueeze(-1), part, own)
            own.copy_(part)

    def forget(self) -> None:
        """Drop all history, so that it can be written again. Only while no chunk is active."""
        for layout in self.layouts:
            layout.forget()

    def release(self) -> None:
        """Drop every tensor. The cache cannot be used afterwards."""
        self._layers.clear()
        self._unwritten.clear()

    # -- figures -----------------------------------------------------------------------------------------------------

    @property
    def keeps_alike(self) -> bool:
        """Whether all branches and heads hold the same tokens: nothing is dropped, or by place alone."""
        compressor = self.settings.compressor
        return compressor is None or compressor.by_place or all(layer.positions is None for layer in self._layers)

    @property
    def bytes(self) -> int:
        """Bytes held now: K/V buffers, token positions and sampled queries."""
        return sum(layer.bytes for layer in self._layers)

    @property
    def peak_bytes(self) -> int:
        """Bytes held once every layer has seen the queries it samples; more is never held."""
        return peak_bytes(self.spec, self.settings, self.plan)

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

    # -- inside ------------------------------------------------------------------------------------------------------

    def _compress(self, index: int, need: CompressionNeed, active: int) -> None:
        """Gather what the compressor keeps to the front, then move the ``active`` tokens up to it."""
        buffer, compressor = self._layers[index], self.settings.compressor
        assert compressor is not None and buffer.positions is not None
        for branch in range(self.spec.branches):  # one branch at a time: temporaries stay at a branch of one layer
            keys, values, positions = (t[branch] for t in (buffer.keys, buffer.values, buffer.positions))
            place = self._device if compressor.looks_at else positions.device
            stored_parts = {"keys": keys[..., : need.before, :], "values": values[..., : need.before, :]}
            region = Region(
                **{name: t.to(place) if name in compressor.looks_at else t for name, t in stored_parts.items()},
                queries=buffer.queries.get(branch),
                positions=positions[..., : need.before].to(place),
                tokens_per_frame=self.spec.tokens_per_frame,
                chunk_tokens=self._chunk_tokens,
                chunk_starts=self._chunk_starts,
                layer=index,
                event=buffer.events,
                first_head=self.spec.first_head,
                all_heads=self.spec.all_kv_heads,
            )
            kept = compressor.keep(region, need.after).to(keys.device)
            positions[..., : need.after] = positions.gather(-1, kept)
            for stored in (keys, values):
                raw = stored.view(torch.uint8) if stored.element_size() == 1 else stored  # fp8 cannot be gathered
                raw[..., : need.after, :] = raw.gather(-2, kept.unsqueeze(-1).expand(*kept.shape, raw.shape[-1]))
                move_left(raw, need.before, active, need.before - need.after, self._chunk_tokens)
        buffer.events += 1

    def _for_model(self, stored: Tensor) -> Tensor:
        if stored.device != self._device:
            moved = torch.empty(stored.shape, dtype=stored.dtype, device=self._device)
            # Head by head, because only a contiguous run of pinned memory is copied without a detour.
            for target, source in zip(moved.flatten(0, 1), stored.flatten(0, 1), strict=True):
                target.copy_(source, non_blocking=True)
            stored = moved
        return stored.to(self.spec.dtype)

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


def write_rows(slot: Tensor, source: Tensor, rows: Rows) -> None:
    """Put ``source [..., n, d]`` at ``rows`` of ``slot [..., tokens, d]``, in its dtype and on its device."""
    source = source.to(slot.device, slot.dtype)
    if slot.element_size() == 1:  # fp8 cannot be indexed
        slot, source = slot.view(torch.uint8), source.view(torch.uint8)
    slot.index_copy_(-2, rows.on(slot.device), source)


def move_left(tokens: Tensor, start: int, length: int, shift: int, block: int) -> None:
    """Move ``length`` tokens from ``start`` on by ``shift`` to the left, within ``tokens`` ``[..., tokens, d]``.

    Source and target overlap, so it goes from the left in blocks, each copied out first: at most ``block`` tokens of
    extra memory.
    """
    for first in range(start, start + length, block):
        last = min(first + block, start + length)
        tokens[..., first - shift : last - shift, :] = tokens[..., first:last, :].clone()
