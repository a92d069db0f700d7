"""How much of a video every step of a plan sees, before it runs: the bookkeeping of one layer's K/V without tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..plan.base import Chunk, Plan
from .layout import KVLayout, budget_tokens, capacity_tokens


@dataclass(frozen=True)
class Budget:
    """Of a layer: ``chunks`` of finished history, None for all. at_finish: see :class:`.settings.KVSettings`."""

    chunks: float | None = None
    at_finish: bool = False


def contexts(plan: Plan, tokens_per_frame: int, budget: Budget) -> Iterator[tuple[Chunk, int, int]]:
    """(chunk, its own step, tokens it attends to) for every step, in the order of the run."""
    layout, last = KVLayout(capacity_tokens(plan, tokens_per_frame, budget.chunks)), plan.chunks[-1].index
    kept = None
    if budget.at_finish and budget.chunks is not None:
        kept = budget_tokens(plan, tokens_per_frame, budget.chunks)

    def finish(chunk: int) -> None:
        layout.commit(chunk)
        if kept is not None and chunk != last:
            layout.trim(kept)

    for chunk in plan.chunks[: plan.prefix_chunks]:
        layout.begin(chunk.index, chunk.frames * tokens_per_frame)
        finish(chunk.index)
    for tick in plan.ticks:
        for item in tick.steps:
            if item.step == 0:
                layout.begin(item.chunk, plan.chunks[item.chunk].frames * tokens_per_frame)
        for item in tick.steps:
            yield plan.chunks[item.chunk], item.step, layout.context_end(item.chunk)
        for item in tick.steps:
            if item.step == plan.steps - 1:
                finish(item.chunk)
