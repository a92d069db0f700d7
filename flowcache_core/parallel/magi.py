"""The MAGI-1 denoiser as one rank of several. Its forwards share K/V of clean chunks, so that goes between ranks."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from ..denoiser import ChunkInput, KVSpec
from ..kv.cache import KVCache
from ..models.common.cached_attention import CachedAttention
from ..models.common.token_share import TokenShare
from ..models.magi.denoiser import NULL, PREVIOUS, TEXT, MagiDenoiser
from ..plan.base import Chunk
from ..rows import Rows
from .errors import answered
from .exchange import HeadShare, all_branches
from .mesh import Mesh
from .shape import Shareable
from .wan import heads_here


@dataclass
class MagiOnRanks(MagiDenoiser):
    """Every rank makes one of the same captions, guidance and weights.

    Two ranks for branches: the forward without text has one to itself, the two others the first (that of the chunk
    alone is cheap and left out late). Three: one each.
    """

    mesh: Mesh = field(default_factory=Mesh)

    def __post_init__(self) -> None:
        super().__post_init__()
        config = self.transformer.config
        Shareable(self.branches, config.num_heads, config.kv_heads).fit(self.mesh.shape.size, self.mesh.shape)

    @property
    def owners(self) -> list[int]:
        """For every branch the rank that runs it."""
        cfg = self.mesh.shape.cfg
        return [branch % cfg for branch in range(self.branches)]

    @property
    def here(self) -> tuple[int, ...]:
        return tuple(branch for branch, owner in enumerate(self.owners) if owner == self.mesh.cfg_rank)

    @property
    def stored(self) -> range:
        own = [branch for branch in super().stored if branch in self.here]
        return range(own[0], own[-1] + 1) if own else range(0)

    @property
    def share(self) -> TokenShare | None:
        return HeadShare(self.mesh) if self.mesh.heads is not None else None

    def joined(self, velocity: Tensor) -> Tensor:
        return all_branches(self.mesh, velocity, self.owners)

    def kv_spec(self, latents: Tensor) -> KVSpec:
        return heads_here(super().kv_spec(latents), self.mesh, len(super().stored))

    # -- branches on ranks -------------------------------------------------------------------------------------------

    @property
    def apart(self) -> bool:
        """Whether the two forwards that keep K/V run on two ranks."""
        return self.guidance is not None and self.mesh.cfg is not None

    def attention(
        self, item: ChunkInput, branches: range, cache: KVCache, observe: bool = True, rows: Rows | None = None
    ) -> CachedAttention:
        if self.apart:  # the one that is kept here is the cache's first
            branches = range(branches.start - self.stored.start, branches.stop - self.stored.start)
        return super().attention(item, branches, cache, observe, rows)

    def encode(self, item: ChunkInput, cache: KVCache) -> None:
        if not self.apart:
            return super().encode(item, cache)
        chunk, given = item.chunk, item.kind == "prefix"
        self.share_finished(cache)
        own = not given and cache.keeps_alike
        if own:
            if TEXT in self.here:
                attention = self.attention(item, range(TEXT, TEXT + 1), cache, observe=False)
                self.run(item, NULL, attention, chunk.first_frame, False, False)
            self.finished[cache] = chunk
        if PREVIOUS in self.here:
            attention = self.attention(item, range(PREVIOUS, PREVIOUS + 1), cache, observe=given)

            def attend_and_send(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                if not own:
                    for tensor in (k, v, q) if given else (k, v):
                        self.send(tensor)
                return attention(layer, q, k, v)

            self.run(item, NULL, attend_and_send, chunk.first_frame, True, False)
        elif TEXT in self.here and not own:
            self.receive_encoded(item, cache, observe=given)
        return None

    def receive_encoded(self, item: ChunkInput, cache: KVCache, observe: bool) -> None:
        """Write what the forward without text makes of a chunk on its rank."""
        spec, own = cache.spec, range(1)
        tokens = item.chunk.frames * spec.tokens_per_frame
        for layer in range(spec.layers):
            like = torch.empty(0, dtype=spec.dtype, device=self.mesh.device)
            k, v = (self.receive(like.new_empty(spec.batch, spec.kv_heads, tokens, spec.head_dim)) for _ in range(2))
            cache.write(layer, own, item.chunk, k, v)
            if observe:
                q = self.receive(like.new_empty(spec.batch, spec.heads, tokens, spec.head_dim))
                cache.observe(layer, own, item.chunk, q)

    def share_finished(self, cache: KVCache, tick: int | None = None) -> None:
        if not self.apart:
            return super().share_finished(cache, tick)
        chunk = self.finished.get(cache)
        if chunk is not None and (tick is None or tick > cache.plan.last_tick[chunk.index] + 1):
            self.hand_over(cache, chunk)
            del self.finished[cache]
        return None

    def hand_over(self, cache: KVCache, chunk: Chunk) -> None:
        if PREVIOUS in self.here:
            for part in cache.held(chunk, 0):
                self.send(part)
        elif TEXT in self.here:
            cache.take_over(chunk, 0, (self.receive(torch.empty_like(part)) for part in cache.held(chunk, 0)))

    def send(self, tensor: Tensor) -> None:
        with answered(self.mesh.timeout):
            dist.send(tensor.contiguous(), group=self.mesh.cfg, group_dst=self.owners[TEXT])
        self.mesh.traffic.add("finished chunks", tensor, 1)

    def receive(self, target: Tensor) -> Tensor:
        target = target.contiguous()
        with answered(self.mesh.timeout):
            dist.recv(target, group=self.mesh.cfg, group_src=self.owners[PREVIOUS])
        return target
