"""K/V of heads that keep unequally much: one cache a group of heads, and attention group by group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ..background import sent
from ..errors import SettingError
from ..plan.base import Chunk, Plan
from ..rows import Rows
from .cache import KVCache
from .head_shares import head_shares
from .layer import LayerBuffer
from .layout import CompressionResult, KVLayout
from .parted import PartedCache
from .settings import KVSettings
from .spec import KVSpec
from .storage.tokens import Scratch

APART = "one number, or one per layer: here keys and values of all heads are needed side by side"


def cache_of(spec: KVSpec, settings: KVSettings, plan: Plan) -> KVCache:
    """The cache of a run, whether its heads keep equally much or not."""
    settings = settings.settled(spec, plan)
    return HeadedCache(spec, settings, plan) if settings.by_head else KVCache(spec, settings, plan)


class HeadedCache(PartedCache):
    """A :class:`KVCache` in parts, one for each group of heads with budgets of its own (:mod:`.head_shares`).

    What takes keys and values out of it is refused: it attends. Its layers and layouts are those of all parts.
    """

    def __init__(self, spec: KVSpec, settings: KVSettings, plan: Plan) -> None:
        self.spec, self.settings, self.plan = spec, settings, plan
        self._scratch = Scratch()
        self.shares = head_shares(spec, settings)
        self.parts = [KVCache(one.spec(spec), one.settings, plan, self._scratch) for one in self.shares]
        self._chunk_tokens = self.parts[0]._chunk_tokens
        self._places: dict[tuple[int, int, int, torch.device], Tensor] = {}
        self._back: dict[tuple[int, int, torch.device], Tensor] = {}

    def _of(self, part: int, layer: int, tensor: Tensor) -> Tensor:
        """The part's heads of ``tensor [n, heads, ...]``; of the queries all that share its K/V heads."""
        shared = tensor.shape[1] // self.spec.kv_heads
        key = (part, layer, shared, tensor.device)
        if key not in self._places:
            heads = torch.tensor(self.shares[part].heads[layer])
            own = (heads[:, None] * shared + torch.arange(shared)).flatten()
            self._places[key] = sent(own, tensor.device)
        return tensor.index_select(1, self._places[key])

    def _in_order(self, layer: int, outputs: list[Tensor]) -> Tensor:
        """What all parts gave ``[n, heads of the part, ...]`` as the model's heads stand."""
        whole = torch.cat(outputs, 1)
        shared = whole.shape[1] // self.spec.kv_heads
        key = (layer, shared, whole.device)
        if key not in self._back:
            heads = torch.tensor([head for one in self.shares for head in one.heads[layer]])
            order = (heads[:, None] * shared + torch.arange(shared)).flatten()
            self._back[key] = sent(order.argsort(), whole.device)
        return whole.index_select(1, self._back[key])

    # -- a chunk's life ----------------------------------------------------------------------------------------------

    def begin(self, chunk: Chunk) -> CompressionResult | None:
        return _together(chunk, [part.begin(chunk) for part in self.parts])

    def write(self, layer: int, branches: range, chunk: Chunk, k: Tensor, v: Tensor, rows: Rows | None = None) -> None:
        for at, part in enumerate(self.parts):
            part.write(layer, branches, chunk, self._of(at, layer, k), self._of(at, layer, v), rows)

    def observe(self, layer: int, branches: range, chunk: Chunk, q: Tensor) -> None:
        for at, part in enumerate(self.parts):
            part.observe(layer, branches, chunk, self._of(at, layer, q))

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
        outputs = [
            part.attend(layer, branches, chunk, self._of(at, layer, q), attend, newest, fused)
            for at, part in enumerate(self.parts)
        ]
        return self._in_order(layer, outputs)

    def context(self, layer: int, branches: range, chunk: Chunk, newest: int = 0) -> tuple[Tensor, Tensor]:
        """Where all heads see equally many tokens, such as the chunk's own; SettingError elsewhere."""
        found = [part.context(layer, branches, chunk, newest) for part in self.parts]
        if len({keys.shape[2] for keys, _ in found}) > 1:
            raise SettingError("budget", "one per head", APART)
        keys, values = zip(*found, strict=True)
        return self._in_order(layer, list(keys)), self._in_order(layer, list(values))

    def bias(self, layer: int, branches: range, chunk: Chunk, newest: int = 0) -> Tensor | None:
        raise SettingError("budget", "one per head", APART)

    def commit(self, chunk: Chunk) -> CompressionResult | None:
        return _together(chunk, [part.commit(chunk) for part in self.parts])

    def held(self, chunk: Chunk, branch: int) -> Iterator[Tensor]:
        for part in self.parts:
            yield from part.held(chunk, branch)

    def take_over(self, chunk: Chunk, branch: int, parts: Iterable[Tensor]) -> None:
        coming = iter(parts)
        for part in self.parts:
            part.take_over(chunk, branch, coming)

    # -- what figures are made of ------------------------------------------------------------------------------------

    @property
    def layouts(self) -> tuple[KVLayout, ...]:  # type: ignore[override]
        """Of the first part's layers, then of the next one's."""
        return tuple(layout for part in self.parts for layout in part.layouts)

    @property
    def _layers(self) -> list[LayerBuffer]:  # type: ignore[override]
        return [layer for part in self.parts for layer in part._layers]

    @property
    def keeps_alike(self) -> bool:
        """Whether all branches hold the same tokens, and the heads of a part."""
        return all(part.keeps_alike for part in self.parts)


def _together(chunk: Chunk, found: list[CompressionResult | None]) -> CompressionResult | None:
    needs = tuple(need for one in found if one is not None for need in one.layers)
    return CompressionResult(chunk.index, needs) if needs else None
