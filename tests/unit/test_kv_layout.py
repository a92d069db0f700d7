"""Where chunks lie in a buffer, when compression fires, and what each chunk attends to."""

from __future__ import annotations

import pytest

from flowcache_core.kv.layout import (
    CompressionNeed,
    KVLayout,
    capacity_tokens,
    drops,
    history_frames,
    max_active_frames,
)
from flowcache_core.plan.base import Plan
from flowcache_core.plan.blockwise import blockwise
from flowcache_core.plan.staggered import staggered
from flowcache_core.plan.window import window

TOKENS = 10  # per latent frame


def drive(plan: Plan, layout: KVLayout) -> tuple[list[tuple[int, CompressionNeed]], list[tuple[int, ...]]]:
    """Run a plan's bookkeeping: compressions as (new chunk, need), and per tick the contexts of its chunks."""
    events, contexts = [], []

    def begin(chunk: int) -> None:
        need = layout.begin(chunk, plan.chunks[chunk].frames * TOKENS)
        if need is not None:
            events.append((chunk, need))

    for chunk in range(plan.prefix_chunks):
        begin(chunk)
        layout.commit(chunk)
    for tick in plan.ticks:
        for item in tick.steps:
            if item.step == 0:
                begin(item.chunk)
        contexts.append(tuple(layout.context_end(item.chunk) for item in tick.steps))
        assert layout.used_tokens <= layout.capacity
        for item in tick.steps:
            if item.step == plan.steps - 1:
                layout.commit(item.chunk)
    return events, contexts


@pytest.mark.parametrize(
    ("budget", "first", "before", "after", "steady"),
    [(1, 5, 2, 1, (2, 3, 4, 5)), (2, 6, 3, 2, (3, 4, 5, 6))],
    ids=["B_total=5", "B_total=6"],
)
def test_magi_sliding_window(budget: int, first: int, before: int, after: int, steady: tuple[int, ...]) -> None:
    """MAGI-1, 10 chunks, 4 in the window: the events and contexts of the released implementation."""
    plan = window(frames=60, chunk_frames=6, steps=16)
    chunk = 6 * TOKENS
    layout = KVLayout(capacity_tokens(plan, TOKENS, budget))
    assert layout.capacity == (budget + 4) * chunk
    events, contexts = drive(plan, layout)
    expected = CompressionNeed(before * chunk, after * chunk)
    assert events == [(new, expected) for new in range(first, 10)]
    stages = [tuple(end // chunk for end in contexts[4 * stage]) for stage in range(13)]
    growing = [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)] + [steady] * 6
    if budget == 2:  # with room for two finished chunks the fifth stage still holds only one
        growing[4] = (2, 3, 4, 5)
    assert stages == growing + [steady[1:], steady[2:], steady[3:]]


@pytest.mark.parametrize("budget", [None, 6, 7, 100])
def test_budget_as_long_as_the_history_never_fires(budget: float | None) -> None:
    plan = window(frames=60, chunk_frames=6, steps=16)
    layout = KVLayout(capacity_tokens(plan, TOKENS, budget))
    events, contexts = drive(plan, layout)
    assert layout.capacity == 600
    assert events == []
    assert contexts[-1] == (600,)


@pytest.mark.parametrize("chunks", [20, 100, 400])
def test_capacity_does_not_grow_with_the_video(chunks: int) -> None:
    for plan, active in (
        (blockwise(frames=3 * chunks, chunk_frames=3, steps=4), 1),
        (staggered(frames=3 * chunks, chunk_frames=3, steps=4, ar_step=2), 2),
        (window(frames=3 * chunks, chunk_frames=3, steps=4), 4),
    ):
        assert capacity_tokens(plan, TOKENS, 2.5) == round((2.5 + active) * 30)


def test_short_chunks_and_a_prefix() -> None:
    """7 frames in chunks of 2 after 3 given ones: 2 + 1 | 2 + 2, and one finished chunk kept."""
    plan = blockwise(frames=7, chunk_frames=2, steps=2, prefix_frames=3)
    assert [chunk.frames for chunk in plan.chunks] == [2, 1, 2, 2]
    layout = KVLayout(capacity_tokens(plan, TOKENS, 1))
    events, contexts = drive(plan, layout)
    assert layout.capacity == 40
    assert events == [(2, CompressionNeed(30, 20)), (3, CompressionNeed(40, 20))]
    assert contexts == [(40,)] * 4


def test_a_fraction_of_a_chunk_is_rounded_to_tokens() -> None:
    plan = blockwise(frames=30, chunk_frames=3, steps=1)
    assert capacity_tokens(plan, 7, 1.3) == 27 + 21  # 1.3 * 21 = 27.3


def test_history_is_what_is_finished_while_others_run() -> None:
    plan = window(frames=60, chunk_frames=6, steps=16)
    assert (max_active_frames(plan), history_frames(plan)) == (24, 36)
    assert history_frames(blockwise(frames=6, chunk_frames=6, steps=2)) == 0


def test_spans_are_adjacent_and_follow_the_clean_region() -> None:
    layout = KVLayout(100)
    for chunk, tokens in enumerate((10, 20, 30)):
        layout.begin(chunk, tokens)
    assert [layout.span(chunk) for chunk in range(3)] == [(0, 10), (10, 30), (30, 60)]
    layout.commit(0)
    assert [layout.span(chunk) for chunk in (1, 2)] == [(10, 30), (30, 60)]
    assert layout.begin(3, 45) == CompressionNeed(10, 5)
    assert [layout.span(chunk) for chunk in (1, 2, 3)] == [(5, 25), (25, 55), (55, 100)]
    assert (layout.clean_tokens, layout.active_tokens, layout.used_tokens) == (5, 95, 100)


def test_out_of_order_calls_are_refused_and_change_nothing() -> None:
    layout = KVLayout(60)
    layout.begin(0, 20)
    layout.begin(1, 20)
    for call in (
        lambda: layout.begin(1, 20),
        lambda: layout.begin(0, 20),
        lambda: layout.commit(1),
        lambda: layout.span(2),
        lambda: layout.begin(2, 21),
    ):
        with pytest.raises(RuntimeError):
            call()
    assert (layout.active, layout.used_tokens, layout.clean_tokens) == ((0, 1), 40, 0)
    layout.commit(0)
    with pytest.raises(RuntimeError, match="no room"):
        layout.begin(2, 40)  # history would have to vanish altogether
    assert layout.clean_tokens == 20


def test_at_finish_a_video_that_fits_drops_too() -> None:
    """All chunks of a short staggered run are active together, so that nothing ever lacks room."""
    plan = staggered(25, 5, 50, 5)
    assert not drops(plan, TOKENS, 1.0, False) and drops(plan, TOKENS, 1.0, True)
    assert not drops(plan, TOKENS, 4.0, True) and not drops(plan, TOKENS, None, True)
    layout = KVLayout(capacity_tokens(plan, TOKENS, 1.0))
    for chunk in plan.chunks:
        layout.begin(chunk.index, 5 * TOKENS)
    layout.commit(0)
    assert layout.trim(5 * TOKENS) is None
    layout.commit(1)
    assert layout.trim(5 * TOKENS) == CompressionNeed(10 * TOKENS, 5 * TOKENS)
    assert layout.span(2) == (5 * TOKENS, 10 * TOKENS)
