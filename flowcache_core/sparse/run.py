"""Sparse attention in one run: method and engine as they came out, masks that serve, densities on their way."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..background import OnItsWay
from ..kv.layout import KVLayout
from ..kv.settings import KVSettings
from ..kv.spec import KVSpec
from ..plan.base import Chunk, Plan
from ..report.events import AttentionDensity, HeadDensities, Remarked
from .attend import choose_engine
from .context_layout import ContextLayout
from .engines import Call, Engine
from .forward import SparseForward
from .mask_memory import Key, MaskMemory
from .method import SparseMethod
from .settings import SparseSettings

Step = tuple[Chunk, int]
"""A chunk and its own step."""


@dataclass(frozen=True)
class _Told:
    """What is to be told of ``chunk``: of a forward that is over, once its shares have arrived, and whether it was a
    step; or, without an ``event`` and no step, that the chunk is done.
    """

    chunk: int
    step: bool = False
    event: AttentionDensity | None = None
    layers: tuple[int, ...] = ()
    shares: OnItsWay | None = None


@dataclass
class SparseRun:
    """Made when sampling starts, released with the run.

    Per tick: :meth:`decide` for the chunks that will be computed, :meth:`forward` for each forward, :meth:`leave`
    behind it, then what has :meth:`arrived`; :meth:`finish` a chunk; at the end the :meth:`rest`.

    method: as settled for this run. chunk_tokens: of the largest chunk. masks: None without mask reuse.
    """

    settings: SparseSettings
    method: SparseMethod
    spec: KVSpec
    plan: Plan
    chunk_tokens: int
    masks: MaskMemory | None
    engines: dict[tuple[Call, bool], Engine | None] = field(default_factory=dict)
    remarks: list[Remarked] = field(default_factory=list)
    told: list[_Told] = field(default_factory=list)
    asked: list[Key] = field(default_factory=list)
    sums: dict[int, tuple[int, Tensor]] = field(default_factory=dict)

    @classmethod
    def begin(
        cls, settings: SparseSettings, spec: KVSpec, plan: Plan, kv: KVSettings, recache: Collection[int] = ()
    ) -> SparseRun:
        """kv: as settled for the run. recache: see :class:`flowcache_core.engine.EngineSettings`. SettingError when the
        settings do not suit the run.
        """
        tokens = [chunk.frames * spec.tokens_per_frame for chunk in plan.chunks]
        group, ranks = spec.heads // spec.kv_heads, (spec.all_kv_heads or spec.kv_heads) // spec.kv_heads
        settings.check(tokens, spec.layers, spec.heads * ranks)
        here = range(spec.first_head * group, spec.first_head * group + spec.heads)
        method = settings.settled(plan, spec.tokens_per_frame, kv, recache).of_heads(here)
        memory = None
        if settings.reuse is not None:
            memory = MaskMemory(settings.reuse, spec.layers, spec.heads, method.block)
        return cls(settings, method, spec, plan, max(tokens), memory)

    # -- a tick --------------------------------------------------------------------------------------------------------

    def drifts(self, steps: Sequence[Step]) -> Tensor | None:
        """fp32 on the device: what :meth:`decide` needs to know of the tick's chunks; None when that is nothing."""
        self.asked = []
        if self.masks is None:
            return None
        known = []
        for key, step in (((chunk.index, branch), step) for chunk, step in steps for branch in self.branches):
            drifts = self.masks.drifts(key, step)
            if drifts is not None:
                self.asked.append(key)
                known.append(drifts)
        return torch.stack(known) if known else None

    def decide(self, steps: Sequence[Step], layouts: Sequence[KVLayout], drifts: Tensor | None) -> None:
        """Which masks serve again at ``steps``, those of the tick that are computed. drifts: of :meth:`drifts`, on the
        CPU.
        """
        if self.masks is None:
            return
        known = dict(zip(self.asked, () if drifts is None else drifts, strict=True))
        for chunk, step in steps:
            layout = self.layout(chunk, layouts)
            for branch in self.branches:
                self.masks.decide((chunk.index, branch), step, layout, known.get((chunk.index, branch)))

    def layout(self, chunk: Chunk, layouts: Sequence[KVLayout]) -> ContextLayout:
        """What lies in the chunk's context, in the layer that holds the most."""
        tokens = self.spec.tokens_per_frame
        widest = max(layouts, key=lambda layout: layout.context_end(chunk.index))
        active = [self.plan.chunks[index] for index in widest.active if index <= chunk.index]
        finished = self.plan.chunks[: active[0].index]
        whole = sum(one.frames for one in finished) * tokens
        dropped = sum(whole - layout.clean_tokens for layout in layouts)
        clean = finished if whole == widest.clean_tokens else ()
        rest = [] if clean or not widest.clean_tokens else [(0, widest.clean_tokens)]
        chunks = (*rest, *((one.index, one.frames * tokens) for one in (*clean, *active)))
        return ContextLayout(chunks, max(0, dropped), self.spec.batch)

    def forward(self, chunk: Chunk, step: int, *, lasting: bool = False) -> SparseForward:
        return SparseForward(self, chunk.index, step, chunk.frames * self.spec.tokens_per_frame, lasting)

    def leave(self, forward: SparseForward, tick: int, context: int) -> None:
        """``forward`` is over; it attended to ``context`` tokens in the layer with the most."""
        if self.masks is not None and not forward.lasting:
            for branch in self.branches:
                self.masks.leave((forward.chunk, branch), forward.step)
        layers, shares = forward.shares()
        if shares is None:
            if not forward.lasting:
                self.told.append(_Told(forward.chunk, step=True))
            return
        made = forward.made / (forward.made + forward.served)
        event = AttentionDensity(
            tick=tick,
            chunk=forward.chunk,
            step=None if forward.lasting else forward.step,
            branches=len(self.branches),
            tokens=forward.own_tokens,
            context_tokens=context,
            density=1.0,
            overhead=made * self.method.prediction * len(layers) / self.spec.layers,
            masks_made=forward.made,
            masks_served=forward.served,
        )
        self.told.append(_Told(forward.chunk, not forward.lasting, event, layers, OnItsWay.of(shares)))

    def finish(self, chunk: int) -> None:
        """``chunk`` has taken its last step and left its K/V."""
        if self.masks is not None:
            self.masks.finish(chunk)
        self.told.append(_Told(chunk))

    # -- what is told --------------------------------------------------------------------------------------------------

    def arrived(self) -> Iterator[AttentionDensity | HeadDensities | Remarked]:
        """What is known by now, in the order in which it happened."""
        while self.remarks:
            yield self.remarks.pop(0)
        while self.told and (self.told[0].shares is None or self.told[0].shares.here):
            yield from self._tell(self.told.pop(0))

    def rest(self) -> Iterator[AttentionDensity | HeadDensities]:
        """All that is not yet told; waits for the device."""
        while self.told:
            yield from self._tell(self.told.pop(0))

    def _tell(self, told: _Told) -> Iterator[AttentionDensity | HeadDensities]:
        if not told.step and told.event is None:
            count, total = self.sums.pop(told.chunk, (0, torch.zeros(0)))
            if count:
                rows = (total / count).tolist()
                yield HeadDensities(told.chunk, tuple(tuple(round(share, 4) for share in row) for row in rows))
            return
        shares = torch.ones(self.spec.layers, self.spec.heads)
        if told.shares is not None:
            shares[list(told.layers)] = told.shares.wait().cpu()
        if told.step:
            count, total = self.sums.get(told.chunk, (0, torch.zeros_like(shares)))
            self.sums[told.chunk] = count + 1, total + shares
        if told.event is not None:
            yield replace(told.event, density=float(shares.mean()))

    # -- engines -------------------------------------------------------------------------------------------------------

    @property
    def branches(self) -> range:
        return range(self.spec.branches)

    def engine(self, call: Call, sage: bool) -> Engine | None:
        """For calls of this kind; None for dense attention, and then a remark says why."""
        if (call, sage) not in self.engines:
            choice = choose_engine(self.settings.engine, call, sage=sage)
            self.engines[call, sage] = choice.engine
            if choice.note is not None:
                self.remarks.append(Remarked(f"sparse attention: {choice.note}"))
        return self.engines[call, sage]

    def give_up(self, call: Call, sage: bool, reason: str) -> None:
        """The engine failed: the rest of the run is dense."""
        self.engines[call, sage] = None
        self.remarks.append(Remarked(f"sparse attention: it stays dense from here on: {reason}"))

    def release(self) -> None:
        """Drop every tensor."""
        self.told.clear()
        self.sums.clear()
        if self.masks is not None:
            self.masks.masks.clear()
            self.masks.history.clear()
