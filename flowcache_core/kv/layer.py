"""One layer of a cache: its tokens, who they are, and how a compression goes through them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..background import streamed
from ..rows import Rows
from .compressor import Compressor, Region
from .layout import CompressionNeed
from .settled import Changes
from .spec import KVSpec
from .storage.tokens import LayerTokens, Place, copy_runs


@dataclass(frozen=True)
class Ground:
    """What a layer's compressions need to know of the run."""

    spec: KVSpec
    place: Place
    chunk_tokens: int
    chunk_starts: tuple[int, ...]
    layer: int
    changes: Changes


@dataclass
class LayerBuffer:
    """``positions`` ``[branches, batch, kv_heads, capacity]`` of the clean tokens, only where a compression can ever
    happen; ``counts``, like it, fp32: for how many tokens each stands, only where they are merged; ``queries`` per
    branch ``[batch, q_heads, rows, head_dim]``, the last rows of the chunk computed last.
    """

    ground: Ground
    tokens: LayerTokens
    positions: Tensor | None
    queries: dict[int, Tensor] = field(default_factory=dict)
    events: int = 0
    counts: Tensor | None = None

    @property
    def bytes(self) -> int:
        beside = [one for one in (self.positions, self.counts, *self.queries.values()) if one is not None]
        return self.tokens.bytes + sum(tensor.numel() * tensor.element_size() for tensor in beside)

    def write(
        self, branches: range, start: int, end: int, kv: tuple[Tensor, Tensor], rows: Rows | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values ``[n * batch, kv_heads, tokens, head_dim]`` of active tokens, or of ``rows`` of them.

        Returns them ``[n, batch, ...]`` in the dtype in which they are stored, where the model is.
        """
        written = []
        for slot, source in zip(self.tokens.slot(branches, start, end), kv, strict=True):
            if slot.dtype == torch.float8_e4m3fn:
                largest = torch.finfo(slot.dtype).max
                source = source.clamp(-largest, largest)  # older torch turns what exceeds the range into NaN
            source = source.unflatten(0, (len(branches), self.ground.spec.batch))
            if slot.device != source.device:
                source = source.to(slot.dtype)  # on the model's device, which is faster at it
            written.append(source)
            if rows is not None:
                write_rows(slot, source, rows)
            elif slot.device != source.device and streamed(source.device):
                copy_runs(slot, source)  # nobody waits: what reads it comes after it, on the device or by `settle`
            else:
                slot.copy_(source)
        return written[0], written[1]

    def commit(self, start: int, end: int, active: int, first_position: int) -> Tensor | None:
        """Tokens ``start`` to ``end``, the first active ones, are finished; see :meth:`LayerTokens.commit`."""
        if self.positions is not None:
            last = first_position + end - start
            own = torch.arange(first_position, last, dtype=torch.int32, device=self.positions.device)
            self.positions[..., start:end] = own
        if self.counts is not None:
            self.counts[..., start:end] = 1.0
        return self.tokens.commit(end - start, active)

    def compress(self, compressor: Compressor, need: CompressionNeed, active: int) -> None:
        """Gather what the compressor keeps to the front, then move the ``active`` tokens up to it."""
        assert self.positions is not None
        for branch in range(self.ground.spec.branches):  # one at a time: temporaries stay at a branch of one layer
            region = self.region(compressor, branch, need.before)
            kept = compressor.keep(region, need.after)
            merged = None if self.counts is None else self._merged(compressor, region, branch, kept)
            kept = kept.to(self.positions.device)
            positions = self.positions[branch]
            positions[..., : need.after] = positions.gather(-1, kept)
            self.tokens.keep(branch, kept, active)
            if merged is not None and self.counts is not None:
                self.tokens.replace_values(branch, merged[0])
                self.counts[branch, ..., : need.after] = merged[1]
        self.tokens.shrink(need.after)
        self.events += 1

    def _merged(self, compressor: Compressor, region: Region, branch: int, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Values ``[batch, kv_heads, count, d]`` and counts of the kept tokens with what goes into them."""
        assert self.counts is not None
        target = compressor.taken_over(region, kept)
        counts = self.counts[branch, ..., : region.keys.shape[2]].to(target.device) * (target >= 0)
        index, values = target.clamp_min(0), region.values.float() * counts.unsqueeze(-1)
        total = torch.zeros(kept.shape, device=target.device).scatter_add_(-1, index, counts)
        sums = torch.zeros((*kept.shape, values.shape[-1]), device=target.device)
        sums.scatter_add_(-2, index.unsqueeze(-1).expand(values.shape), values)
        return sums / total.unsqueeze(-1), total

    def region(self, compressor: Compressor, branch: int, count: int) -> Region:
        """The ``count`` clean tokens of a branch as the compressor sees them."""
        assert self.positions is not None
        positions, ground = self.positions[branch, ..., :count], self.ground
        place = ground.place.model_device if compressor.looks_at else positions.device
        # What it does not look at has its shape alone.
        unseen = torch.empty((), dtype=ground.spec.dtype, device=positions.device)
        unseen = unseen.expand(*positions.shape, ground.spec.head_dim)
        seen = {name: self.tokens.clean_tokens(branch, name, place) for name in sorted(compressor.looks_at)}
        return Region(
            keys=seen.get("keys", unseen),
            values=seen.get("values", unseen),
            queries=self.queries.get(branch),
            positions=positions.to(place),
            tokens_per_frame=ground.spec.tokens_per_frame,
            chunk_tokens=ground.chunk_tokens,
            chunk_starts=ground.chunk_starts,
            layer=ground.layer,
            event=self.events,
            first_head=ground.spec.first_head,
            all_heads=ground.spec.all_kv_heads,
            change=ground.changes.at(positions.to(place)),
        )


def write_rows(slot: Tensor, source: Tensor, rows: Rows) -> None:
    """Put ``source [..., n, d]`` at ``rows`` of ``slot [..., tokens, d]``, in its dtype and on its device."""
    source = source.to(slot.device, slot.dtype)
    if slot.element_size() == 1:  # fp8 cannot be indexed
        slot, source = slot.view(torch.uint8), source.view(torch.uint8)
    slot.index_copy_(-2, rows.on(slot.device), source)
