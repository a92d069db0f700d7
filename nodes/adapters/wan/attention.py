"""One guider call's self-attention: K/V goes into the run's cache and the chunk attends to what lies there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ....flowcache_core.errors import SettingError, require
from ....flowcache_core.kv.cache import KVCache
from ....flowcache_core.plan.base import Chunk

_SEEN = "flowcache_self_attention"


@dataclass
class ChunkAttention:
    """The host's ``optimized_attention_override`` while one chunk is computed.

    table: cond uuid -> branch. previous: the override that was there before; it gets our K/V.
    tokens: of the chunk. written: (layer, branch) whose K/V this call has stored.
    """

    cache: KVCache
    chunk: Chunk
    tokens: int
    table: Mapping[Any, int]
    previous: Callable[..., Tensor] | None
    written: set[tuple[int, int]] = field(default_factory=set)

    def __call__(
        self, func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, **kwargs: Any
    ) -> Tensor:
        options = kwargs["transformer_options"]
        layer = options["block_index"]
        # A block runs its self-attention first; the options are the same dictionary until the block is done.
        if k.shape != q.shape or options.get(_SEEN) == layer:
            return self.run(func, q, k, v, heads, **kwargs)
        options[_SEEN] = layer
        given, needed = (
            f"{q.shape[1]} tokens",
            f"{self.tokens} tokens: no reference images or frames beside the video's",
        )
        require(q.shape[1] == self.tokens, "conditioning", given, needed)
        batch = q.shape[0] // len(options["uuids"])
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        outputs = []
        for items, branches in self.slices(options["uuids"]):
            rows = slice(items.start * batch, items.stop * batch)
            keys, values = self.context(layer, branches, q[rows], k[rows], v[rows])
            own = {**options, **{name: options[name][items.start : items.stop] for name in ("uuids", "cond_or_uncond")}}
            part = {**kwargs, "transformer_options": own, "skip_reshape": True}
            outputs.append(self.run(func, q[rows], keys, values, heads, **part))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def run(self, func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return func(*args, **kwargs) if self.previous is None else self.previous(func, *args, **kwargs)

    def slices(self, uuids: list[Any]) -> Iterator[tuple[range, range]]:
        """Items of the host's batch, and their branches, in runs of consecutive branches."""
        unknown = [uuid for uuid in uuids if uuid not in self.table]
        if unknown:
            accepted = "one that evaluates the conditioning it was given and no other"
            raise SettingError("guider", "a guider that makes up conditioning while it samples", accepted)
        branches = [self.table[uuid] for uuid in uuids]
        cuts = [i + 1 for i, (a, b) in enumerate(pairwise(branches)) if b != a + 1]
        for first, last in pairwise([0, *cuts, len(branches)]):
            yield range(first, last), range(branches[first], branches[last - 1] + 1)

    def context(self, layer: int, branches: range, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values to attend to. Only the first evaluation of a branch is stored: what a guidance node of
        another pack evaluates again, perturbed, must not become history.
        """
        mine = {(layer, branch) for branch in branches}
        if self.written.isdisjoint(mine):
            self.cache.write(layer, branches, self.chunk, k, v)
            self.cache.observe(layer, branches, self.chunk, q)
            self.written |= mine
            return self.cache.context(layer, branches, self.chunk)
        keys, values = self.cache.context(layer, branches, self.chunk)
        return torch.cat((keys[..., : -self.tokens, :], k), -2), torch.cat((values[..., : -self.tokens, :], v), -2)
