"""How much of a video every step of a plan sees, before it runs: the bookkeeping of one layer's K/V without tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..plan.base import Chunk, Plan
from .layout import KVLayout, budget_tokens, capacity_tokens
from .settings import KVSettings


@dataclass(frozen=True)
class Budget:
    """Of a layer: ``chunks`` of finished history, None for all. at_finish: see :class:`.settings.KVSettings`."""

    chunks: float | None = None
    at_finish: bool = False


def kept_again(plan: Plan, chunk: Chunk, frames: int, sink: int) -> tuple[Chunk, ...]:
    """What is computed again of the history of ``chunk`` where ``frames`` have room, itself among them: the first
    ``sink`` and the newest whole chunks."""
    room = frames - chunk.frames
    room -= sink if chunk.first_frame > room else 0
    earlier = plan.chunks[: chunk.index]
    return tuple(one for one in earlier if one.end_frame <= sink or chunk.first_frame - one.first_frame <= room)


def recached(
    plan: Plan, tokens_per_frame: int, kv: KVSettings, chunks: Collection[int]
) -> dict[int, tuple[Chunk, ...]]:
    """Chunk -> what of the history is computed again when it begins; of all layers what the smallest holds."""
    budgets = kv.budgets or (None,)
    frames = min(capacity_tokens(plan, tokens_per_frame, one) for one in budgets) // tokens_per_frame
    sink = kv.sink_frames(plan)
    return {chunk: kept_again(plan, plan.chunks[chunk], frames, sink) for chunk in chunks}


def contexts(
    plan: Plan, tokens_per_frame: int, budget: Budget, again: Mapping[int, Sequence[Chunk]] | None = None
) -> Iterator[tuple[Chunk, int, int]]:
    """(chunk, its own step, tokens it attends to) for every step, in the order of the run. again: see
    :func:`recached`."""
    layout, last = KVLayout(capacity_tokens(plan, tokens_per_frame, budget.chunks)), plan.chunks[-1].index
    kept = None
    if budget.at_finish and budget.chunks is not None:
        kept = budget_tokens(plan, tokens_per_frame, budget.chunks)

    def begin(chunk: int) -> None:
        if again is not None and chunk in again:
            layout.forget()
            for one in again[chunk]:
                layout.begin(one.index, one.frames * tokens_per_frame)
                finish(one.index)
        layout.begin(chunk, plan.chunks[chunk].frames * tokens_per_frame)

    def finish(chunk: int) -> None:
        layout.commit(chunk)
        if kept is not None and chunk != last:
            layout.trim(kept)

    for chunk in plan.chunks[: plan.prefix_chunks]:
        begin(chunk.index)
        finish(chunk.index)
    for tick in plan.ticks:
        for item in tick.steps:
            if item.step == 0:
                begin(item.chunk)
        for item in tick.steps:
            yield plan.chunks[item.chunk], item.step, layout.context_end(item.chunk)
        for item in tick.steps:
            if item.step == plan.steps - 1:
                finish(item.chunk)
