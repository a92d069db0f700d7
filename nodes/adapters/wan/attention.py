"""One guider call's self-attention: K/V goes into the run's cache and the chunk attends to what lies there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ....flowcache_core.errors import SettingError, require
from ....flowcache_core.kv.cache import KVCache
from ....flowcache_core.models.common.attention import attend_heads
from ....flowcache_core.plan.base import Chunk
from ....flowcache_core.rows import Rows
from ....flowcache_core.sparse.forward import SparseAttention
from ..replaced import replaced
from ..run.foreign import repeated
from ..run.sparse import sage
from .guided import Asked

KEY = "flowcache_attention"
DEVICE = "multigpu_thread_device"  # which of the host's clones a call runs on
OVERRIDE = "optimized_attention_override"
Forward = Callable[..., Tensor]


@torch.compiler.disable
def attend(*args: Any, transformer_options: dict[str, Any] | None = None, **kwargs: Any) -> Tensor:
    """In place of every layer's self-attention while a run is on.

    One function for all layers, runs and models, because torch.compile has a guard on it: a graph that was traced for
    another sampler is not taken for ours, nor the other way round. What changes from chunk to chunk stays out of the
    graph.
    """
    if transformer_options is None or KEY not in transformer_options:
        found = "a node that calls the model without its transformer options"
        raise SettingError("model", found, "one that keeps them")
    attention: ChunkAttention = transformer_options[KEY]
    return attention.layer(transformer_options["block_index"], args, transformer_options, kwargs)


@contextmanager
def attached(transformer: Any) -> Iterator[tuple[Forward, ...]]:
    """Self-attention through :func:`attend`; yields what each layer does itself (another pack's patch of it, maybe)."""
    layers = [block.self_attn for block in transformer.blocks]
    originals = tuple(layer.forward for layer in layers)
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(replaced(layer, "forward", lambda original: attend))
        yield originals


@dataclass
class ChunkAttention:
    """What :func:`attend` does while one chunk is computed.

    forwards: each layer's own self-attention. table: cond uuid -> branch. tokens: in the call, the chunk's or those of
    ``rows``, where only these are computed. newest: how many of the newest tokens are seen, these included; 0 for all.
    asked: what the guider wants. written: (layer, branch) whose K/V this call has stored; evaluated: in which of the
    guider's requests each was run last. An attention override of another node gets our K/V, and no calls that leave out
    blocks. sparse: what the attention goes through, None where nothing is left out of it. elsewhere: as forwards, of
    the host's clones by device.
    """

    cache: KVCache
    chunk: Chunk
    tokens: int
    table: Mapping[Any, int]
    forwards: Sequence[Forward]
    asked: Asked
    sparse: SparseAttention | None = None
    elsewhere: Mapping[Any, Sequence[Forward]] = field(default_factory=dict)
    rows: Rows | None = None
    newest: int = 0
    evaluated: dict[tuple[int, int], int] = field(default_factory=dict)
    written: set[tuple[int, int]] = field(default_factory=set)

    def layer(self, layer: int, args: Any, options: dict[str, Any], kwargs: dict[str, Any]) -> Tensor:
        """The layer's own self-attention with the chunk's history. ``options`` are as before when it returns."""
        had, previous = OVERRIDE in options, options.get(OVERRIDE)
        compressor = self.cache.settings.compressor
        if previous is not None and compressor is not None and compressor.merges:
            accepted = "one of the two: another method of KV Cache Compressor, or no other node's attention"
            raise SettingError("method", f"{compressor.name} beside another node's attention", accepted)

        def run(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
            return func(*args, **kwargs) if previous is None else previous(func, *args, **kwargs)

        def override(func: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, heads: int, **rest: Any) -> Tensor:
            return self.attention(layer, partial(run, func), (q, k, v), heads, rest, fused=previous is None)

        forwards = self.elsewhere.get(options.get(DEVICE), self.forwards)
        options[OVERRIDE] = override
        try:
            # The host's threads for clones are not in inference mode, the run's cache is.
            with torch.inference_mode(torch.is_inference_mode_enabled() or DEVICE in options):
                return forwards[layer](*args, transformer_options=options, **kwargs)
        finally:
            options.pop(OVERRIDE)
            if had:
                options[OVERRIDE] = previous

    def attention(
        self,
        layer: int,
        run: Callable[..., Tensor],
        qkv: tuple[Tensor, Tensor, Tensor],
        heads: int,
        kwargs: dict[str, Any],
        fused: bool,
    ) -> Tensor:
        """``run``: the attention that a user has chosen. fused: whether ours may take its place where K/V is packed."""
        options, given = kwargs["transformer_options"], qkv[0].shape[1]
        needed = f"{self.tokens} tokens: no reference images or frames beside the video's"
        require(given == self.tokens, "conditioning", f"{given} tokens", needed)
        known = "uuids" in options and qkv[0].shape[0] % len(options["uuids"]) == 0
        require(
            known, "model", "a node that calls the model on its own", "one that evaluates conditioning as the host does"
        )
        batch = qkv[0].shape[0] // len(options["uuids"])
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in qkv)
        outputs = []
        for items, branches in self.slices(options["uuids"]):
            rows = slice(items.start * batch, items.stop * batch)
            own = options.copy()  # by no key: who reads one may be watched
            own.update({name: options[name][items.start : items.stop] for name in ("uuids", "cond_or_uncond")})
            part = {**kwargs, "transformer_options": own, "skip_reshape": True}

            def dense(
                q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, part: dict[str, Any] = part
            ) -> Tensor:
                k, v = k.to(q.device), v.to(q.device)
                if bias is not None:
                    return attend_heads(q, k, v, bias.to(q.device))
                return run(q, k, v, q.shape[1], **part).unflatten(-1, (q.shape[1], -1)).transpose(1, 2)

            out = self.attended(layer, branches, (q[rows], k[rows], v[rows]), dense, fused)
            outputs.append(out.transpose(1, 2).flatten(2))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def attended(
        self, layer: int, branches: range, qkv: tuple[Tensor, Tensor, Tensor], dense: Callable[..., Tensor], fused: bool
    ) -> Tensor:
        """The attention of some branches' ``q [n * batch, heads, tokens, head_dim]``; a first evaluation is stored."""
        again = not self.written.isdisjoint((layer, branch) for branch in branches)
        if again or self.sparse is not None:
            keys, values = self.context(layer, branches, *qkv)
            if self.sparse is None:
                bias = self.cache.bias(layer, branches, self.chunk, self.newest)
                return dense(qkv[0], keys, values) if bias is None else dense(qkv[0], keys, values, bias)
            return self.sparse.attend(layer, branches, qkv[0], keys, values, dense, sage=sage(), again=again)
        self.store(layer, branches, *qkv)
        return self.cache.attend(layer, branches, self.chunk, qkv[0], dense, self.newest, fused)

    def refuse_second(self, mine: set[tuple[int, int]]) -> None:
        """SettingError where one request of the guider's has the model run twice; ``mine``: (layer, branch)."""
        if any(self.evaluated.get(place) == self.asked.calls for place in mine):
            found = f"the model ran twice in one evaluation of chunk {self.chunk.index}"
            raise repeated(found, self.asked.model_options)
        self.evaluated |= dict.fromkeys(mine, self.asked.calls)

    def slices(self, uuids: list[Any]) -> Iterator[tuple[range, range]]:
        """Items of the host's batch, and their branches, in runs of consecutive branches."""
        unknown = [uuid for uuid in uuids if uuid not in self.table]
        if unknown:
            accepted = "one that evaluates the conditioning it was given and no other, such as PerpNegGuider"
            raise SettingError("guider", "a guider or guidance node that brings conditioning of its own", accepted)
        branches = [self.table[uuid] for uuid in uuids]
        cuts = [i + 1 for i, (a, b) in enumerate(pairwise(branches)) if b != a + 1]
        for first, last in pairwise([0, *cuts, len(branches)]):
            yield range(first, last), range(branches[first], branches[last - 1] + 1)

    def store(self, layer: int, branches: range, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Write what a branch is first evaluated with."""
        mine = {(layer, branch) for branch in branches}
        self.refuse_second(mine)
        self.cache.write(layer, branches, self.chunk, k, v, self.rows)
        if self.rows is None:
            self.cache.observe(layer, branches, self.chunk, q)
        self.written |= mine

    def context(self, layer: int, branches: range, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values to attend to. Only the first evaluation of a branch is stored: what a guidance node of
        another pack evaluates again, perturbed, must not become history.
        """
        mine = {(layer, branch) for branch in branches}
        if self.written.isdisjoint(mine):
            self.store(layer, branches, q, k, v)
            keys, values = self.cache.context(layer, branches, self.chunk, self.newest)
            return keys.to(q.device), values.to(q.device)
        self.refuse_second(mine)
        keys, values = (part.to(q.device) for part in self.cache.context(layer, branches, self.chunk, self.newest))
        if self.rows is not None:
            places = keys.shape[-2] - self.rows.tokens + self.rows.on(keys.device)
            return keys.index_copy(-2, places, k), values.index_copy(-2, places, v)
        return torch.cat((keys[..., : -self.tokens, :], k), -2), torch.cat((values[..., : -self.tokens, :], v), -2)
