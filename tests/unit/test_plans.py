"""Plans against a direct reading of the published rules, and the laws every plan keeps."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowcache_core.errors import SettingError
from flowcache_core.plan import PLANS, SlidingWindow, Staggered, blockwise, staggered, window
from flowcache_core.plan.base import Chunk, ChunkStep, Plan, Tick
from flowcache_core.plan.staggered import VideoWindow, overlap_windows, timestep_rows
from flowcache_core.schedule import skyreels


@dataclass(frozen=True)
class Stage:
    """Chunks ``[first_chunk, end_chunk)`` move together through one group of steps each.

    groups: each chunk's step group, oldest chunk first; group g holds the steps ``g * p`` to ``(g + 1) * p - 1`` where
    p is ``steps // window_chunks``, the ticks of a stage. Tick t belongs to stage ``t // p``.
    """

    index: int
    first_chunk: int
    end_chunk: int
    groups: tuple[int, ...]


def stages(chunks: int, window_chunks: int = 4, prefix_chunks: int = 0) -> tuple[Stage, ...]:
    """The stages of a video of ``chunks`` chunks, of which ``prefix_chunks`` are given clean."""
    table: list[Stage] = []
    for newest in range(prefix_chunks, chunks + window_chunks - 1):
        first = max(prefix_chunks, newest - window_chunks + 1)
        end = min(chunks, newest + 1)
        groups = tuple(newest - chunk for chunk in range(first, end))
        table.append(Stage(len(table), first, end, groups))
    return tuple(table)


quick = settings(max_examples=40, deadline=None)


@st.composite
def shapes(draw):
    """frames, chunk_frames, steps, prefix_frames."""
    frames = draw(st.integers(1, 30))
    return frames, draw(st.integers(1, 8)), draw(st.integers(1, 12)), draw(st.integers(0, frames - 1))


@st.composite
def plans(draw):
    frames, chunk_frames, steps, prefix = draw(shapes())
    kind = draw(st.sampled_from(sorted(PLANS)))
    if kind == "blockwise":
        return blockwise(frames, chunk_frames, steps, prefix)
    if kind == "staggered":
        return staggered(frames, chunk_frames, steps, draw(st.integers(0, 15)), prefix)
    chunks = draw(st.integers(1, 5))
    return window(frames, chunk_frames, steps * chunks, chunks, prefix)


def first_ticks(plan):
    return [plan.first_tick[chunk.index] for chunk in plan.chunks[plan.prefix_chunks :]]


# -- laws of every plan ----------------------------------------------------------------------------------------------


@quick
@given(plans())
def test_every_chunk_takes_every_step_once_and_in_order(plan):
    taken = {chunk.index: [] for chunk in plan.chunks}
    for tick in plan.ticks:
        order = [item.chunk for item in tick.steps]
        assert order == sorted(set(order)) and order
        for item in tick.steps:
            taken[item.chunk].append(item.step)
    for chunk, steps in taken.items():
        assert steps == ([] if chunk < plan.prefix_chunks else list(range(plan.steps)))
    assert [tick.index for tick in plan.ticks] == list(range(len(plan.ticks)))
    assert plan.total_steps == (len(plan.chunks) - plan.prefix_chunks) * plan.steps


@quick
@given(shapes())
def test_chunks_cover_the_video_and_the_prefix_without_gap_or_overlap(shape):
    frames, chunk_frames, steps, prefix = shape
    plan = blockwise(frames, chunk_frames, steps, prefix)
    assert [f for chunk in plan.chunks for f in range(chunk.first_frame, chunk.end_frame)] == list(range(frames))
    assert sum(chunk.frames for chunk in plan.chunks[: plan.prefix_chunks]) == prefix
    assert all(1 <= chunk.frames <= chunk_frames for chunk in plan.chunks)
    assert [chunk.index for chunk in plan.chunks] == list(range(len(plan.chunks)))
    assert plan.frames == frames


@quick
@given(plans())
def test_max_active_is_the_brute_force_count(plan):
    begun, finished, most = set(), set(), 0
    for tick in plan.ticks:
        begun |= {item.chunk for item in tick.steps}
        most = max(most, len(begun - finished))
        finished |= {item.chunk for item in tick.steps if item.step == plan.steps - 1}
    assert plan.max_active == most


@quick
@given(plans())
def test_a_chunk_never_runs_ahead_of_the_one_before(plan):
    done = dict.fromkeys(range(len(plan.chunks)), 0)
    done.update(dict.fromkeys(range(plan.prefix_chunks), plan.steps))
    for tick in plan.ticks:
        for item in tick.steps:
            done[item.chunk] += 1
            assert item.chunk == 0 or done[item.chunk - 1] >= done[item.chunk]


@quick
@given(plans())
def test_the_description_holds_every_step_of_every_chunk(plan):
    header, ticks, *rows = plan.describe(columns=10**6).splitlines()
    assert f"{plan.frames} latent frames" in header and f"{len(plan.ticks)} ticks" in header
    assert ticks.split()[1:] == [str(tick.index) for tick in plan.ticks]
    assert len(rows) == len(plan.chunks)
    for chunk, row in zip(plan.chunks, rows, strict=True):
        cells = row.split()[4:]
        if chunk.index < plan.prefix_chunks:
            assert cells == ["clean"]
        else:
            at = plan.first_tick[chunk.index]
            assert cells[at : at + plan.steps] == [str(step) for step in range(plan.steps)]
            assert set(cells[:at] + cells[at + plan.steps :]) <= {"."}


def test_a_description_reads_like_a_table():
    assert staggered(5, 2, 3, 1, prefix_frames=1).describe().splitlines() == [
        "staggered: 5 latent frames in 3 chunks, 3 steps each, 4 ticks, at most 2 active",
        "tick                  0   1   2   3",
        "chunk 0  frames 0-0 clean",
        "chunk 1  frames 1-2   0   1   2   .",
        "chunk 2  frames 3-4   .   0   1   2",
    ]
    long = blockwise(2, 1, 50).describe(columns=4).splitlines()
    assert long[1].split() == ["tick", "0", "1", "...", "98", "99"]
    assert long[3].split()[4:] == [".", ".", "...", "48", "49"]


# -- blockwise and staggered -----------------------------------------------------------------------------------------


@quick
@given(shapes())
def test_blockwise_is_one_chunk_step_per_tick(shape):
    plan = blockwise(*shape)
    assert all(len(tick.steps) == 1 for tick in plan.ticks)
    assert first_ticks(plan) == [plan.steps * k for k in range(len(plan.chunks) - plan.prefix_chunks)]
    assert plan.max_active == 1


@quick
@given(shapes(), st.integers(0, 15))
def test_staggered_chunks_start_ar_step_ticks_apart(shape, ar_step):
    frames, chunk_frames, steps, prefix = shape
    plan = staggered(frames, chunk_frames, steps, ar_step, prefix)
    starts = first_ticks(plan)
    assert starts == [min(ar_step, steps) * k for k in range(len(starts))]
    assert len(plan.ticks) == starts[-1] + steps


def matrix(chunks, prefix_chunks, steps, ar_step):
    """The published matrix row by row: counters 0 (waiting) to steps + 1 (done), and which chunks a row updates."""
    row = [steps + 1] * prefix_chunks + [0] * (chunks - prefix_chunks)
    rows, updates = [], []
    while not all(count >= steps for count in row):
        new = []
        for j in range(chunks):
            count = row[j] + 1 if j == 0 or row[j - 1] >= steps else new[j - 1] - ar_step
            new.append(min(max(count, 0), steps + 1))
        updates.append([j for j in range(chunks) if new[j] != row[j] and new[j] != steps + 1])
        rows.append(row := new)
    return rows, updates


@quick
@given(shapes(), st.integers(0, 15))
def test_staggered_is_the_published_matrix(shape, ar_step):
    frames, chunk_frames, steps, prefix = shape
    plan = staggered(frames, chunk_frames, steps, ar_step, prefix)
    rows, updates = matrix(len(plan.chunks), plan.prefix_chunks, steps, ar_step)
    assert [[item.chunk for item in tick.steps] for tick in plan.ticks] == updates
    template = [999.0, *(float(1 + 7 * k) for k in range(steps)), 0.0]
    assert timestep_rows(plan, template[1:-1]) == tuple(tuple(template[count] for count in row) for row in rows)


def test_skyreels_golden_rows():
    first, second = staggered(25, 5, 50, 5), staggered(25, 5, 50, 5, prefix_frames=5)
    assert (len(first.ticks), len(second.ticks)) == (70, 65)
    assert [(first.first_tick[j], first.last_tick[j]) for j in range(5)] == [(5 * j, 5 * j + 49) for j in range(5)]
    assert {j: (second.first_tick[j], second.last_tick[j]) for j in range(1, 5)} == {
        j: (5 * (j - 1), 5 * (j - 1) + 49) for j in range(1, 5)
    }
    assert 0 not in second.first_tick and second.prefix_chunks == 1
    rows = timestep_rows(first, skyreels(50, 8.0).timesteps)
    assert rows[50] == (0, 470, 666, 773, 841)
    assert rows[0] == (999,) * 5
    assert rows[-1] == (0, 0, 0, 0, 140)
    assert first.max_active == 5 and first.total_steps == 250


def test_ar_step_zero_moves_all_chunks_together():
    plan = staggered(7, 3, 4, 0)
    for step, tick in enumerate(plan.ticks):
        assert tick.steps == tuple(ChunkStep(chunk, step) for chunk in range(3))
    assert len(plan.ticks) == 4


def test_a_window_that_is_no_multiple_of_the_chunk_keeps_its_short_last_chunk():
    plan = staggered(13, 5, 8, 2)
    assert [chunk.frames for chunk in plan.chunks] == [5, 5, 3]
    assert plan.total_steps == 24


@quick
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 12), st.integers(1, 12), st.integers(1, 8), st.data())
def test_every_active_chunk_fits_the_models_window(frames, size, steps, ar_step, base_chunks, data):
    base = base_chunks * size
    prefix = data.draw(st.integers(0, (frames - 1) // size)) * size
    if frames > base and ar_step < steps / base_chunks:
        smallest = math.ceil(steps / base_chunks)
        with pytest.raises(SettingError, match=f"ar_step: got {ar_step}, accepted: at least {smallest} "):
            staggered(frames, size, steps, ar_step, prefix, base)
        return
    plan = staggered(frames, size, steps, ar_step, prefix, base)
    room = len(plan.chunks) if frames <= base else base_chunks
    for tick in plan.ticks:
        assert tick.steps[-1].chunk - tick.steps[0].chunk < room


# -- overlapping windows ---------------------------------------------------------------------------------------------


def test_overlap_windows_golden():
    assert overlap_windows(45, 25, 5, 5) == (VideoWindow(0, 25, 0), VideoWindow(20, 25, 5))
    assert overlap_windows(48, 25, 5, 5) == (VideoWindow(0, 25, 0), VideoWindow(20, 25, 5), VideoWindow(40, 8, 5))
    assert overlap_windows(13, 25, 5, 5) == (VideoWindow(0, 13, 0),)


@quick
@given(st.integers(1, 200), st.integers(1, 6), st.integers(1, 4), st.integers(1, 30))
def test_overlap_windows_cover_the_video(frames, size, overlap_chunks, extra):
    overlap = overlap_chunks * size
    base = overlap + extra
    cut = overlap_windows(frames, base, overlap, size)
    new = [f for w in cut for f in range(w.first_frame + w.prefix_frames, w.end_frame)]
    assert new == list(range(frames))
    assert all(w.prefix_frames < w.frames <= base for w in cut)
    assert [w.prefix_frames for w in cut] == [0] + [overlap] * (len(cut) - 1)
    assert len(cut) == (1 if frames <= base else 1 + (frames - base - 1) // (base - overlap) + 1)


# -- sliding window --------------------------------------------------------------------------------------------------


def test_magi_golden_stages():
    table = stages(10)
    assert [s.first_chunk for s in table] == [0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert [s.end_chunk for s in table] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 10]
    assert [s.groups[-1] for s in table] == [0] * 10 + [1, 2, 3]
    assert [s.groups[0] + 1 for s in table] == [1, 2, 3] + [4] * 10
    table = stages(8, prefix_chunks=3)
    assert [s.first_chunk for s in table] == [3, 3, 3, 3, 4, 5, 6, 7]
    assert [s.end_chunk for s in table] == [4, 5, 6, 7, 8, 8, 8, 8]
    plan = window(60, 6, 64)
    assert len(plan.ticks) == 208 and plan.total_steps == 640 and plan.max_active == 4
    assert plan.prefix_chunks == 0 and len(window(48, 6, 64, prefix_frames=18).ticks) == 16 * 8


@quick
@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 4), st.data())
def test_window_plan_follows_the_published_stages(chunks, width, per_stage, data):
    prefix = data.draw(st.integers(0, chunks - 1))
    plan = window(chunks * 3, 3, width * per_stage, width, prefix * 3)
    expected = []
    for k in range(chunks + width - 1 - prefix):
        i = k + prefix
        inside = range(max(prefix, i - width + 1), min(chunks, i + 1))
        groups = list(reversed(range(max(0, i - chunks + 1), min(width, i - prefix + 1))))
        stage = stages(chunks, width, prefix)[k]
        assert (stage.index, stage.first_chunk, stage.end_chunk) == (k, inside.start, inside.stop)
        assert list(stage.groups) == groups
        for tick in range(per_stage):
            expected.append([ChunkStep(c, g * per_stage + tick) for c, g in zip(inside, groups, strict=True)])
    assert [list(tick.steps) for tick in plan.ticks] == expected
    assert len(plan.ticks) == per_stage * (chunks + width - 1 - prefix)


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: blockwise(0, 3, 4), "frames"),
        (lambda: blockwise(9, 0, 4), "chunk_frames"),
        (lambda: blockwise(9, 3, -1), "steps"),
        (lambda: blockwise(9, 3, 0), "steps"),
        (lambda: blockwise(9, 3, 4.0), "steps"),
        (lambda: blockwise(9, 3, 4, prefix_frames=9), "prefix_frames"),
        (lambda: blockwise(9, 3, 4, prefix_frames=-1), "prefix_frames"),
        (lambda: staggered(9, 3, 4, -1), "ar_step"),
        (lambda: staggered(9, 3, 0, 1), "steps"),
        (lambda: staggered(9, 3, 4, True), "ar_step"),
        (lambda: staggered(9, 3, 4, 1, prefix_frames=12), "prefix_frames"),
        (lambda: staggered(9, 3, 4, 1, base_frames=2), "base_frames"),
        (lambda: staggered(45, 5, 50, 9, base_frames=25), "ar_step"),
        (lambda: window(9, 3, 10), "steps"),
        (lambda: window(9, 3, 8, window_chunks=0), "window_chunks"),
        (lambda: window(9, 0, 8), "chunk_frames"),
        (lambda: overlap_windows(45, 25, 25, 5), "overlap_frames"),
        (lambda: overlap_windows(45, 25, 0, 5), "overlap_frames"),
        (lambda: overlap_windows(45, 25, 7, 5), "overlap_frames"),
        (lambda: overlap_windows(45, 3, 1, 5), "base_frames"),
        (lambda: timestep_rows(blockwise(3, 1, 4), (1.0,)), "timesteps"),
        (lambda: blockwise(3, 1, 4).describe(columns=1), "columns"),
    ],
)
def test_a_setting_that_cannot_work_is_named(call, field):
    with pytest.raises(SettingError) as error:
        call()
    assert error.value.field == field


def test_the_smallest_ar_step_is_said_and_works():
    with pytest.raises(SettingError, match="ar_step: got 9, accepted: at least 10"):
        staggered(45, 5, 50, 9, base_frames=25)
    assert staggered(45, 5, 50, 10, base_frames=25).max_active == 5


CHUNKS = (Chunk(0, 0, 2), Chunk(1, 2, 2))


@pytest.mark.parametrize(
    ("chunks", "ticks", "prefix", "field"),
    [
        (CHUNKS, [[(0, 0)]], 0, "plan.ticks"),
        (CHUNKS, [[(0, 0)], [(1, 0)], [(1, 1)]], 0, "plan.ticks"),
        (CHUNKS, [[(1, 0), (0, 0)]], 0, "plan.ticks[0]"),
        (CHUNKS, [[(0, 0)], [(0, 0)], [(1, 0)]], 0, "plan.ticks[1]"),
        (CHUNKS, [[(0, 0)], [(1, 0)]], 1, "plan.ticks[0]"),
        (CHUNKS, [[(0, 0), (1, 0)]], 2, "plan.prefix_chunks"),
        ((Chunk(0, 0, 2), Chunk(1, 3, 2)), [[(0, 0), (1, 0)]], 0, "plan.chunks[1]"),
        ((Chunk(0, 0, 2), Chunk(2, 2, 2)), [[(0, 0), (2, 0)]], 0, "plan.chunks[1]"),
        ((Chunk(0, 0, 0), Chunk(1, 0, 2)), [[(0, 0), (1, 0)]], 0, "plan.chunks[0]"),
    ],
)
def test_an_unlawful_plan_is_refused(chunks, ticks, prefix, field):
    rows = tuple(Tick(k, tuple(ChunkStep(*pair) for pair in row)) for k, row in enumerate(ticks))
    with pytest.raises(SettingError) as error:
        Plan("own", chunks, 1, rows, prefix)
    assert error.value.field == field


def test_ticks_must_be_numbered_in_order():
    with pytest.raises(SettingError, match="index 0"):
        Plan("own", CHUNKS, 1, (Tick(1, (ChunkStep(0, 0), ChunkStep(1, 0))),))


def test_the_registry_names_each_plan_as_the_plan_names_itself():
    assert {name: kind(2).plan(6, 4).name for name, kind in PLANS.items()} == {name: name for name in PLANS}


def test_four_chunks_abreast():
    made = {name: kind.abreast(2, 8).plan(12, 8) for name, kind in PLANS.items()}
    assert {name: plan.max_active for name, plan in made.items()} == {"blockwise": 1, "staggered": 4, "window": 4}


def test_a_plan_takes_its_own_numbers_out_of_a_run():
    run = {"chunk_frames": 6, "window_chunks": 2, "frames": 60, "ar_step": 9}
    assert PLANS["window"].of(run) == SlidingWindow(6, 2) and PLANS["staggered"].of(run) == Staggered(6, 9)


@pytest.mark.parametrize(("given", "prefix_chunks", "held"), [(0, 0, 0), (1, 0, 1), (3, 1, 0), (4, 1, 1), (8, 2, 2)])
def test_a_prefix_of_no_whole_chunks_is_held_in_the_first_new_one(given, prefix_chunks, held):
    plan = window(12, 3, 8, 2, given)
    assert (plan.prefix_chunks, plan.held_frames, plan.prefix_frames) == (prefix_chunks, held, given)
    assert [chunk.frames for chunk in plan.chunks] == [3, 3, 3, 3]
