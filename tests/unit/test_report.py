"""Record, text, JSON, figure, quality and video files, from events written by hand."""

from __future__ import annotations

import errno
import gc
import json
import math
import re
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from dummy import DummyDenoiser
from recorded import painted, record

from flowcache_core.engine import EngineSettings, generate
from flowcache_core.errors import SettingError
from flowcache_core.files import require_folder, whole_file
from flowcache_core.kv.settings import KVSettings
from flowcache_core.plan.blockwise import blockwise
from flowcache_core.report import document, figure, text
from flowcache_core.report.events import (
    CacheCompressed,
    CacheKind,
    CachePass,
    ChunkFinished,
    Event,
    NotFinite,
    RunFinished,
    RunStarted,
    StepTaken,
    WindowPass,
)
from flowcache_core.report.quality import Quality, compare
from flowcache_core.report.record import Recorder, RunRecord, kind, settings_tag
from flowcache_core.report.video import enlarge, even, read_video, side_by_side, write_video
from flowcache_core.reuse.base import Reason
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.never import Never
from flowcache_core.reuse.teacache import TeaCache
from flowcache_core.schedule import shifted

# Two chunks of five steps: first step, warm-up, then the policy's word, then the forced last step.
ROWS = {
    0: [
        ("compute", "first step", None, None),
        ("compute", "warm-up", 0.5, 0.0),
        ("reuse", "within threshold", 0.05, 0.05),
        ("compute", "threshold reached", 0.08, 0.13),
        ("compute", "last step", 0.02, 0.0),
    ],
    1: [
        ("compute", "first step", None, None),
        ("compute", "warm-up", 0.4, 0.0),
        ("reuse", "within threshold", 0.04, 0.04),
        ("reuse", "within threshold", 0.04, 0.08),
        ("compute", "last step", 0.03, 0.08),
    ],
}


def steps_of(rows: dict[int, list[tuple[str, str, float | None, float | None]]]) -> list[StepTaken]:
    return [
        StepTaken(
            tick=5 * chunk + step, chunk=chunk, step=step, sigma=1 - step / 5, action=action, reason=reason,
            distance=distance, accumulated=accumulated, branches=2, tokens=6, context_tokens=6 * (chunk + 1),
            kv_tokens=6 * (chunk + 1), seconds=0.1,
        )
        for chunk, row in rows.items()
        for step, (action, reason, distance, accumulated) in enumerate(row)
    ]  # fmt: skip


def events_of(
    steps: list[StepTaken], *, prefix: int = 0, chunks: int = 2, per_chunk: int = 5, notes: tuple[str, ...] = ()
) -> list[Event]:
    started = RunStarted("blockwise", chunks, prefix, per_chunk, len(steps), 4_000_000, 18, 12, notes)
    return [
        started,
        *steps,
        CacheCompressed(5, 1, 12, 9, 0.01),
        CachePass("clean", 0, 2, 6, 6, 0.1),
        ChunkFinished(9, 1, 3, torch.zeros(1)),
        RunFinished(2.0, 0.1),
    ]


@pytest.fixture
def half() -> RunRecord:
    return record(events_of(steps_of(ROWS)), "chunkwise-t0.1-w2-velocity", 0.1, lambda event: 1e15)


# -- record -------------------------------------------------------------------------------------------------------


def test_record_adds_up(half: RunRecord) -> None:
    assert (half.computed_steps, half.reused_steps, half.total_steps) == (7, 3, 10)
    assert half.computed_share == 0.7
    assert (half.seconds, half.engine_seconds, half.kv_bytes) == (2.0, 0.1, 4_000_000)
    assert half.kv_tokens == tuple((tick, 6 if tick < 5 else 12) for tick in range(10))
    assert half.chunks_finished == 1
    assert (len(half.compressions), len(half.cache_passes), len(half.window_passes)) == (1, 1, 0)


def test_flops_are_summed_over_all_events(half: RunRecord) -> None:
    assert half.pflops == 15.0  # started, ten steps, compression, clean pass, finished chunk, finished run
    assert record(events_of([])).flops is None


def test_kinds_tell_why_a_step_was_computed(half: RunRecord) -> None:
    assert half.kinds == [
        ["warm-up", "warm-up", "reused", "computed", "forced"],
        ["warm-up", "warm-up", "reused", "reused", "forced"],
    ]


@pytest.mark.parametrize(
    ("action", "reason", "expected"),
    [("compute", "no reuse", "computed"), ("compute", "cap", "forced"), ("compute", "schedule", "computed"),
     ("reuse", "schedule", "reused"), ("compute", "first step", "warm-up")],
)  # fmt: skip
def test_kind(action: str, reason: str, expected: str) -> None:
    assert kind(replace(steps_of(ROWS)[0], action=action, reason=reason)) == expected


def test_unfinished_run_and_prefix_chunks() -> None:
    events = events_of(steps_of({1: ROWS[1]}), prefix=1)[:3]
    unfinished = record(events, threshold=0.1)
    assert unfinished.seconds is None
    assert unfinished.notes == ()
    assert unfinished.kinds == [["given"] * 5, ["warm-up", "warm-up", "pending", "pending", "pending"]]


def test_recorder_keeps_no_latents() -> None:
    recorder, latents = Recorder(), torch.zeros(3)
    gone = weakref.ref(latents)
    recorder(ChunkFinished(0, 0, 0, latents))
    del latents
    gc.collect()
    assert gone() is None


def test_a_record_is_of_one_run() -> None:
    with pytest.raises(ValueError, match="saw none start"):
        record([])


def test_windows_of_different_steps_have_rows_of_their_own_length() -> None:
    started = events_of([])[0]
    assert isinstance(started, RunStarted)
    first, both = started.steps, record([started, replace(started, steps=2, total_steps=2 * started.chunks)])
    rows = both.kinds
    assert [len(row) for row in rows] == [first] * started.chunks + [2] * started.chunks
    assert both.started.steps == first
    codes = figure.map_codes(both)
    assert codes.shape == (2 * started.chunks, first)
    assert codes.mask[started.chunks :, 2:].all() and not codes.mask[: started.chunks].any()
    assert not codes.mask[started.chunks :, :2].any()
    assert text.step_map(both).count("|  |") == started.chunks


# -- windows of a long video ----------------------------------------------------------------------------------------


@pytest.fixture
def long() -> RunRecord:
    """Two windows: two chunks, then the last of them given clean and one more."""
    second = [replace(step, tick=step.tick - 5) for step in steps_of({1: ROWS[1]})]
    events = events_of(second, prefix=1, notes=("again",))
    events[0] = replace(events[0], kv_bytes=3_000_000, kv_tokens=24)  # type: ignore[type-var]
    first = events_of(steps_of(ROWS), notes=("again", "known"))
    return record([*first, *events], "tag", 0.1, lambda event: 1e15)


def test_windows_add_up(long: RunRecord) -> None:
    assert (long.total_steps, long.computed_steps, long.reused_steps) == (15, 7 + 3, 3 + 2)
    assert long.computed_share == pytest.approx(10 / 15)
    assert (long.seconds, long.engine_seconds, long.pflops) == (4.0, 0.2, 15.0 + 10.0)
    assert (long.kv_bytes, long.started.kv_tokens, long.started.chunks) == (4_000_000, 24, 4)
    assert long.notes == ("again", "known") and long.chunks_finished == 2
    assert [(w.first_chunk, w.chunks, w.prefix_chunks, w.total_steps) for w in long.windows] == [
        (0, 2, 0, 10),
        (2, 2, 1, 5),
    ]
    assert [c.chunk for c in long.compressions] == [1, 3] and [c.chunk for c in long.cache_passes] == [0, 2]
    assert [step.chunk for step in long.steps_taken[10:]] == [3] * 5
    assert [step.tick for step in long.steps_taken] == list(range(15))
    assert long.kv_tokens[-1] == (14, 12) and len(long.kv_tokens) == 15
    assert long.kinds[2] == ["given"] * 5 and long.kinds[3] == long.kinds[1]


def test_a_window_that_is_not_done_leaves_the_seconds_open(half: RunRecord) -> None:
    events = events_of(steps_of(ROWS))
    unfinished = record([*events, *events[:4]], threshold=0.1)
    assert unfinished.seconds is None and unfinished.total_steps == 20
    assert unfinished.kinds[2:] == [["warm-up", "warm-up", "reused", "pending", "pending"], ["pending"] * 5]
    assert half.windows[0].chunks == half.started.chunks == 2 and len(half.windows) == 1


def test_windows_are_told_apart_in_text_json_and_figure(long: RunRecord) -> None:
    assert text.summary(long).splitlines()[:6] == [
        "tag: computed 10 of 15 (67 %)",
        "chunk 0 |ww.#!|",
        "chunk 1 |ww..!|",
        "-- window 2 of 2",
        "chunk 2 |=====|",
        "chunk 3 |ww..!|",
    ]
    assert document.to_json(long)["windows"][1] == {
        "first_chunk": 2, "chunks": 2, "prefix_chunks": 1, "total_steps": 5, "steps": 5,
    }  # fmt: skip
    drawn = figure.draw(long).axes[0]
    assert [line.get_ydata() for line in drawn.lines] == [[1.5, 1.5]]
    assert figure.map_codes(long).shape == (4, 5)


def test_long_maps_of_several_windows_count_only_chunks_as_hidden() -> None:
    started = RunStarted("staggered", 40, 0, 3, 120, 0, 0, None, ())
    lines = text.step_map(record([started] * 3)).splitlines()
    assert lines[24] == f"... {120 - 24 - 24} more chunks ..." and lines[-1].startswith("chunk 119")


# -- notes --------------------------------------------------------------------------------------------------------


def changed(**values: object) -> list[StepTaken]:
    """The steps with those that the threshold decided replaced."""
    decided = ("within threshold", "threshold reached")
    return [replace(s, **values) if s.reason in decided else s for s in steps_of(ROWS)]  # type: ignore[arg-type]


def test_note_of_a_threshold_too_low() -> None:
    never = changed(action="compute", reason="threshold reached")
    assert record(events_of(never), threshold=0.001).notes == (
        "threshold 0.001 is too low here: 0 of 10 steps reused; the smallest distance measured was 0.04",
    )


def test_note_of_a_threshold_too_high() -> None:
    always = changed(action="reuse", reason="within threshold")
    assert record(events_of(always), threshold=9.0).notes == (
        "threshold 9 was never reached (at most 0.13 accumulated): every step free to be reused was, so a larger one "
        "changes nothing",
    )


def test_no_note_where_the_threshold_decides(half: RunRecord) -> None:
    assert half.notes == ()


def test_notes_known_before_the_run_come_first_and_threshold_0_is_said_once() -> None:
    never = changed(action="compute", reason="threshold reached")
    known = "threshold 0: every step is computed"
    assert record(events_of(never, notes=(known,)), threshold=0.0).notes == (known,)


def test_note_of_reuse_undone_by_window_passes() -> None:
    undone = changed(action="compute", reason="window pass")
    started, *others = events_of(undone)
    assert isinstance(started, RunStarted)
    events = [replace(started, attention="bidirectional"), *others, WindowPass(0, 2, (6, 6), 0.1)]
    (note,) = record(events, threshold=0.1).notes
    assert note.startswith("bidirectional attention") and "none of the 4 steps" in note


# -- tag ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "kv", "tag"),
    [
        (Chunkwise(threshold=0.1, warmup_steps=5), KVSettings(budget=2), "chunkwise-t0.1-w5-velocity-kv2"),
        (TeaCache(threshold=0.25, warmup_steps=1), KVSettings(), "teacache-t0.25-w1-velocity"),
        (Never(), KVSettings(), "never"),
        (Never(), KVSettings(budget=(1.0, 2.5)), "never-kv2.5max"),
    ],
)
def test_settings_tag(policy: Chunkwise, kv: KVSettings, tag: str) -> None:
    settings = EngineSettings(blockwise(6, 3, 8), shifted(8, 3.0), policy=policy, kv=kv)
    assert settings_tag(settings) == tag


def test_recorder_on_a_real_run() -> None:
    settings = EngineSettings(
        blockwise(9, 3, 6), shifted(6, 3.0), policy=Chunkwise(threshold=0.6, warmup_steps=2), kv=KVSettings(budget=1)
    )
    recorder = Recorder.of(settings)
    generate(DummyDenoiser(), settings, torch.randn(1, 2, 9, 2, 2), observe=recorder)
    made = recorder.record()
    assert made.tag == "chunkwise-t0.6-w2-velocity-kv1" and made.threshold == 0.6
    assert made.total_steps == 18 == len(made.steps_taken)
    assert [row[:2] + row[-1:] for row in made.kinds] == [["warm-up", "warm-up", "forced"]] * 3
    assert 0 < made.reused_steps < 18
    assert [(c.chunk, c.tokens_before, c.tokens_after) for c in made.compressions] == [(2, 12, 6)]
    assert max(tokens for _, tokens in made.kv_tokens) == made.started.kv_tokens == 12


# -- text ---------------------------------------------------------------------------------------------------------


def test_table_states_the_figures(half: RunRecord) -> None:
    full = record(
        events_of([replace(s, action="compute", reason="no reuse") for s in steps_of(ROWS)])[:-1]
        + [RunFinished(5.0, 0.1)],
        flops=lambda event: 2e15,
    )
    quality = {"flowcache": Quality(31.256, 0.98765, 0.1, ())}
    lines = text.table({"vanilla": full, "flowcache": half}, quality).splitlines()
    cells = {line[:18].strip(): line[18:].split("  ") for line in lines[2:]}
    values = {title: [part.strip() for part in parts if part.strip()] for title, parts in cells.items()}
    assert lines[0].split() == ["vanilla", "flowcache"]
    assert values == {
        "attention": ["block-causal", "block-causal"],
        "computed steps": ["10 of 10 (100%)", "7 of 10 (70%)"],
        "FLOPs": ["30 P", "15 P"],
        "seconds": ["5.00", "2.00"],
        "speed-up": ["1.00x", "2.50x"],
        "speed-up by FLOPs": ["1.00x", "2.00x"],
        "peak K/V MB": ["4.00", "4.00"],
        "PSNR dB": ["-", "31.26"],
        "SSIM": ["-", "0.9877"],
    }


def test_summary_is_headline_map_and_notes(half: RunRecord) -> None:
    assert text.summary(half).splitlines() == [
        "chunkwise-t0.1-w2-velocity: computed 7 of 10 (70 %)",
        "chunk 0 |ww.#!|",
        "chunk 1 |ww..!|",
        "w warm-up, # computed, ! computed by force (last step, cap), . reused",
        "K/V compressions: 1 (the last from 12 to 9 tokens a layer)",
    ]
    assert text.summary(half).isascii()


def test_long_maps_are_abridged() -> None:
    many = record([RunStarted("blockwise", 100, 0, 3, 300, 0, 0, None, ())])
    lines = text.step_map(many).splitlines()
    assert len(lines) == 49 and lines[24] == "... 52 more chunks ..." and lines[-1].startswith("chunk 99")


@pytest.mark.parametrize(
    ("flops", "shown"), [(None, "-"), (113.62e15, "113.6 P"), (4.2e12, "4.2 T"), (999e6, "999 M"), (12.0, "12")]
)
def test_flops_text(flops: float | None, shown: str) -> None:
    assert text.flops_text(flops) == shown


# -- JSON ---------------------------------------------------------------------------------------------------------


def test_document_is_valid_json_with_the_promised_keys(half: RunRecord, tmp_path: Path) -> None:
    quality = Quality(30.0, 0.9, math.nan, (30.0, math.inf))
    content = document.document({"vanilla": half, "flowcache": half}, quality, {"threshold": 0.1, "kv_budget": None})
    document.write_document(tmp_path / "report.json", content)
    read = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert set(read) == {"schema", "runs", "quality", "settings", "machine", "date"}
    assert read["schema"] == 1 and list(read["runs"]) == ["vanilla", "flowcache"]
    run = read["runs"]["flowcache"]
    assert (run["seconds"], run["pflops"], run["computed_steps"], run["total_steps"]) == (2.0, 15.0, 7, 10)
    assert run["kv_bytes_peak"] == 4_000_000
    assert run["steps_taken"][3]["reason"] == "threshold reached" and run["steps_taken"][0]["distance"] is None
    assert run["compressions"] == [{"tick": 5, "chunk": 1, "tokens_before": 12, "tokens_after": 9, "seconds": 0.01}]
    assert read["quality"] == {"psnr": 30.0, "ssim": 0.9, "flicker": None, "psnr_per_frame": [30.0, None]}
    assert read["machine"]["torch"] == torch.__version__ and read["machine"]["cores"] >= 1
    assert read["machine"]["processor"]


def test_every_key_of_a_run_is_documented(half: RunRecord) -> None:
    page = (Path(__file__).parents[2] / "docs" / "report-schema.md").read_text(encoding="utf-8")
    content = document.document({"vanilla": half}, compare(torch.zeros(2, 16, 16, 3), torch.ones(2, 16, 16, 3)))
    keys = {*content, *content["machine"], *content["quality"], *content["runs"]["vanilla"]}
    keys |= {key for row in content["runs"]["vanilla"]["steps_taken"] for key in row}
    assert [key for key in sorted(keys) if f"`{key}`" not in page] == []


def test_every_reason_and_kind_is_documented_and_nothing_else() -> None:
    page = (Path(__file__).parents[2] / "docs" / "report-schema.md").read_text(encoding="utf-8")
    reasons = next(line for line in page.splitlines() if line.startswith("| `reason` |"))
    assert sorted(re.findall(r"`([^`]+)`", reasons)[1:]) == sorted(get_args(Reason))
    kinds = next(line for line in page.splitlines() if line.startswith("| `cache_passes` |"))
    assert set(re.findall(r"\(([^)]*)\)", kinds)[0].split("`")[1::2]) == set(get_args(CacheKind))


# -- figure -------------------------------------------------------------------------------------------------------


def test_map_codes_count_every_kind(half: RunRecord) -> None:
    codes = figure.map_codes(half)
    assert codes.shape == (2, 5)
    assert Counter(figure.KINDS[code] for code in codes.flat) == {"warm-up": 4, "reused": 3, "forced": 2, "computed": 1}


def test_figure_paints_each_kind_in_its_colour(half: RunRecord) -> None:
    image = painted(figure.draw(replace(half, threshold=None)))  # without bars inside the reused cells
    assert image.shape[1:] == (1200, 3) and image.dtype == np.uint8
    area = {name: int((image == rgb(colour)).all(-1).sum()) for name, colour in figure.COLOURS.items()}
    cell = area["reused"] / 3
    assert max(area["given"], area["pending"]) < cell / 20  # edges of letters
    for name, cells in (("warm-up", 4), ("forced", 2)):
        assert area[name] / cell == pytest.approx(cells, rel=0.1), name
    assert 1 < area["computed"] / cell < 1.5  # the K/V curve has its colour too


def rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


@pytest.mark.parametrize("chunks", [1, 40])
def test_figure_of_any_length_is_1200_wide_and_not_too_high(chunks: int, tmp_path: Path) -> None:
    steps = [replace(s, chunk=c, tick=5 * c + s.step) for c in range(chunks) for s in steps_of({0: ROWS[0]})]
    figure.save(record(events_of(steps, chunks=chunks), threshold=0.1), tmp_path / "map.png")
    header = (tmp_path / "map.png").read_bytes()[16:24]
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")
    assert width == 1200 and 400 < height < 1200


def test_a_long_legend_leaves_the_plots_their_width() -> None:
    """With every kind of step in it the legend is wider than the picture, unless it takes a second row."""
    steps = [replace(s, chunk=c, tick=5 * c + s.step) for c in range(4) for s in steps_of({0: ROWS[0]})]
    steps[2] = replace(steps[2], action="part", reason="tokens that moved", computed_tokens=3)
    drawn = figure.draw(record([*events_of(steps, chunks=5), NotFinite(3, 3, 3, "velocity", (), ())], threshold=0.1))
    drawn.draw_without_rendering()
    assert all(axes.get_position().width > 0.8 for axes in drawn.axes)


def test_figure_without_distances_and_cache_has_the_map_alone() -> None:
    steps = [replace(s, distance=None, accumulated=None) for s in steps_of(ROWS)]
    started = RunStarted("staggered", 2, 0, 5, 10, 0, 0, None, ())
    assert len(figure.draw(record([started, *steps])).axes) == 1


# -- quality ------------------------------------------------------------------------------------------------------


def test_quality_against_values_computed_by_hand() -> None:
    reference = torch.rand(4, 16, 20, 3, generator=torch.Generator().manual_seed(0)) * 0.5
    video = reference.clone()
    video[1] += 0.1  # squared error 0.01 in one frame of four
    quality = compare(video, reference)
    assert quality.psnr == pytest.approx(-10 * math.log10(0.0025), abs=1e-4)
    assert quality.psnr_per_frame == pytest.approx((100, 20, 100, 100), abs=1e-4)
    assert quality.flicker == pytest.approx(0.2 / 3, abs=1e-6)  # up by 0.1 and down again, in three changes
    assert 0.75 < quality.ssim < 1


def test_ssim_of_constant_frames_is_the_luminance_term() -> None:
    a, b, c1 = 0.2, 0.6, 0.01**2
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    frames = torch.ones(40, 16, 16, 3)  # more than are scored at once
    assert compare(frames * a, frames * b).ssim == pytest.approx(expected, abs=1e-4)


def test_identical_videos_are_100_db_and_bytes_equal_floats() -> None:
    video = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    same = compare(video, video.float() / 255)
    assert (same.psnr, same.flicker) == (100.0, 0.0) and same.ssim == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 16, 16, 4), (2, 16, 16, 3), (3, 8, 16, 3)])
def test_quality_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    reference = torch.zeros(shape) if shape[1] < 11 else torch.zeros(3, 16, 16, 3)
    with pytest.raises(SettingError, match="video: got"):
        compare(torch.zeros(shape), reference)


# -- video --------------------------------------------------------------------------------------------------------


def test_video_round_trip(tmp_path: Path) -> None:
    ramp = torch.linspace(40, 210, 32).to(torch.uint8)
    frames = torch.stack([ramp.roll(i).expand(32, 32) for i in range(6)]).unsqueeze(-1).expand(-1, -1, -1, 3)
    write_video(tmp_path / "a.mp4", frames.contiguous(), fps=8, crf=8)
    read = read_video(tmp_path / "a.mp4")
    assert read.shape == (6, 256, 256, 3)
    assert (read[:, 4::8, 4::8].int() - frames.int()).abs().float().mean() < 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("size", "view", "out"),
    [((17, 31), 16, (18, 32)), ((300, 400), 256, (300, 400)), ((64, 64), 256, (256, 256))],
)
def test_sides_are_enlarged_and_made_even(size: tuple[int, int], view: int, out: tuple[int, int]) -> None:
    video = torch.randint(0, 255, (2, *size, 3), dtype=torch.uint8)
    made = even(enlarge(video, view))
    factor = out[0] // size[0] if out[0] % size[0] == 0 else 1
    assert made.shape[1:3] == out
    assert torch.equal(made[:, : size[0] * factor : factor, : size[1] * factor : factor], video)


def test_side_by_side_keeps_both_pictures_under_their_labels() -> None:
    left, right = (torch.full((2, 64, 64, 3), value, dtype=torch.uint8) for value in (200, 90))
    both = side_by_side([left, right], ["without", "with"])
    assert both.shape == (2, 256 + 21, 256 + 4 + 256, 3)
    assert (both[:, 21:, :256] == 200).all() and (both[:, 21:, 260:] == 90).all()
    labels = both[0, :21]
    assert (labels[:, :256] > 150).sum() > 50 and (labels[:, 260:] > 150).sum() > 50  # writing
    assert not torch.equal(labels[:, :256], labels[:, 260:])


@pytest.mark.parametrize("bad", [torch.zeros(2, 8, 8, 3), torch.zeros(2, 8, 8, 4, dtype=torch.uint8)])
def test_video_of_another_shape_or_type_is_refused(bad: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="shape \\[T, H, W, 3\\], uint8"):
        write_video(tmp_path / "a.mp4", bad)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    with pytest.raises(SettingError, match="a video file that can be read"):
        read_video(tmp_path / "a.mp4")


# -- whole files --------------------------------------------------------------------------------------------------


def test_out_that_is_a_file_is_refused_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("here already")
    frames = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    with pytest.raises(SettingError, match="out: got .*a folder that can be written"):
        write_video(tmp_path / "out" / "a.mp4", frames)
    with pytest.raises(SettingError, match="a folder that can be written"):
        require_folder(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "here already"


def test_a_full_disk_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    target.write_text("old")
    with pytest.raises(SettingError, match="the disk is full"), whole_file(target) as part:
        part.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_an_error_or_interrupt_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "a.mp4") as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_the_probe_of_a_new_folder_leaves_only_the_folder(tmp_path: Path) -> None:
    require_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
