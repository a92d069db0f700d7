"""Joint attention over the host's model: the chunks of a tick in one pass, beside the K/V of finished ones.

As with a bidirectional window (:mod:`.window`) the guider is asked chunk by chunk, each at its own noise level, and
each of its model calls is answered out of a pass that they share wherever it would be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....flowcache_core.denoiser import ChunkInput, ChunkOutput
from ....flowcache_core.kv.cache import KVCache
from ....flowcache_core.models.common.cached_attention import joint_context
from ....flowcache_core.plan.base import Chunk
from ..run.foreign import skipped
from .attention import KEY, ChunkAttention
from .guided import Asked
from .parts import Part
from .rope import chunk_positions
from .window import WindowModel

if TYPE_CHECKING:
    from .denoiser import HostDenoiser


@dataclass
class JointAttention(ChunkAttention):
    """:class:`ChunkAttention` for neighbouring chunks; ``chunk`` is the newest of them.

    chunks: all of them. frames: latent frames that are seen in all, 0 for all that is kept. turn: whose pass runs, and
    for which branches it is the first: that is the pass whose K/V of the part lasts.
    """

    chunks: Sequence[Chunk] = ()
    frames: int = 0
    turn: tuple[Part, set[int]] = field(default_factory=lambda: (Part(0, 0, 0.0), set()))

    def ask(self, asked: Asked) -> None:
        """From now on for another of the guider's calls."""
        self.asked = asked
        self.evaluated.clear()

    def attended(
        self, layer: int, branches: range, qkv: tuple[Tensor, Tensor, Tensor], dense: Callable[..., Tensor], fused: bool
    ) -> Tensor:
        return dense(qkv[0], *self.context(layer, branches, *qkv))

    def context(self, layer: int, branches: range, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        mine = {(layer, branch) for branch in branches}
        self.refuse_second(mine)
        fresh = self.written.isdisjoint(mine)
        part, first = self.turn
        lengths = [chunk.frames * self.cache.spec.tokens_per_frame for chunk in self.chunks]
        for chunk, *own in zip(self.chunks, *(one.split(lengths, 2) for one in (q, k, v)), strict=True):
            inside = part.first_frame <= chunk.first_frame < part.end_frame
            if fresh or (inside and first.issuperset(branches)):
                self.cache.write(layer, branches, chunk, own[1], own[2])
                self.cache.observe(layer, branches, chunk, own[0])
        self.written |= mine
        kept = joint_context(self.cache, layer, branches, self.chunk, self.frames)
        keys, values = (one.to(q.device) for one in kept)
        if fresh:
            return keys, values
        return torch.cat((keys[..., : -self.tokens, :], k), -2), torch.cat((values[..., : -self.tokens, :], v), -2)


@dataclass
class JointModel(WindowModel):
    """One tick, whose passes go through ``attention``. branch_of: by part and conditioning entry."""

    attention: JointAttention | None = None
    branch_of: dict[tuple[Part, Any], int] = field(default_factory=dict)

    def asked(self, part: Part, entries: set[Any]) -> None:
        assert self.attention is not None
        self.attention.turn = (
            part,
            {self.branch_of[part, entry] for entry in entries if (part, entry) in self.branch_of},
        )


def run_joint(denoiser: HostDenoiser, items: Sequence[ChunkInput], cache: KVCache) -> list[ChunkOutput]:
    """The guided velocities of neighbouring chunks; leaves K/V of every branch of each."""
    first, end = items[0].chunk.first_frame, items[-1].chunk.end_frame
    parts = [Part(item.chunk.first_frame, item.chunk.end_frame, item.sigma) for item in items]
    conds = denoiser.conds(items[0])
    tables = [denoiser.all_branches.table(conds, part.sigma) for part in parts]
    requests = [Asked(denoiser.guided.model_options) for _ in items]
    attention = JointAttention(
        cache=cache,
        chunk=items[-1].chunk,
        tokens=(end - first) * cache.spec.tokens_per_frame,
        table={uuid: branch for table in tables for uuid, branch in table.items()},
        forwards=denoiser.forwards,
        asked=requests[0],
        chunks=[item.chunk for item in items],
        frames=items[0].seen_frames,
    )
    model = JointModel(
        seen(denoiser, items, parts),
        [item.timestep for item in items for _ in range(item.chunk.frames)],
        first,
        attention=attention,
        branch_of={(part, uuid): table[uuid] for part, table in zip(parts, tables, strict=True) for uuid in table},
    )
    positions = chunk_positions(denoiser.guided.model_options["transformer_options"], first)
    outputs = []
    for item, part, table, asked in zip(items, parts, tables, requests, strict=True):
        attention.ask(asked)
        clean = denoiser.guided.predict(
            item.latents,
            item.sigma,
            part.frames,
            conds,
            {KEY: attention, "rope_options": positions},
            part=part.first_frame,
            asked=asked,
            model=model.at(part),
        )
        wanted = {(part, uuid) for uuid in table if uuid in asked.entries}
        if wanted - model.answered or not asked.calls:
            found = f"the model was not run for chunk {item.chunk.index} at sigma {item.sigma:.3g}"
            raise skipped(found, denoiser.guided.model_options)
        denoiser.frames(item.chunk).copy_(clean)
        outputs.append(ChunkOutput(((item.latents - clean) / item.sigma).unsqueeze(0)))
    last = cache.plan.steps - 1
    for item, asked in zip(items, requests, strict=True):
        attention.ask(asked)
        denoiser.complete(item, attention, cache, item.step == last)
    return outputs


def seen(denoiser: HostDenoiser, items: Sequence[ChunkInput], parts: Sequence[Part]) -> Tensor:
    """The chunks as the model gets them ``[B, C, f, H, W]``: known latents at their level where a mask keeps them."""
    window = torch.zeros_like(denoiser.clean)
    for item, part in zip(items, parts, strict=True):
        window[:, :, part.frames] = item.latents
    return denoiser.guided.seen(window, parts)[:, :, parts[0].first_frame : parts[-1].end_frame]
