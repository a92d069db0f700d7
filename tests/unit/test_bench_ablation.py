"""The ablation benchmark's own arithmetic; the runs themselves are the benchmark's business."""

from __future__ import annotations

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import ablation, lpips
from benchmarks.contact_sheet import FACTOR, FRAMES, LABEL, contact_sheet
from flowcache_core.calibrate.runs import Setup
from flowcache_core.sweep.workers import Workers


def test_the_threshold_is_found_by_halving():
    asked: list[float] = []

    def computed(threshold: float) -> float:
        asked.append(threshold)
        return 1 - 0.8 * threshold

    found = ablation.threshold_for(0.36, computed)
    assert found == pytest.approx(0.8, rel=0.04) and len(asked) == ablation.HALVINGS
    stepwise = ablation.threshold_for(0.5, lambda threshold: 0.4 if threshold > 0.1 else 0.9)
    assert stepwise == pytest.approx(0.1, rel=0.04)  # of those that are as near, the last one found


def test_a_row_without_lpips_says_so():
    row = ablation.Row("chunkwise", 0.36, 0.4, 1.5, 2.25, 30.126, 0.9, None)
    assert str(row).split() == ["chunkwise", "36.0%", "40.0%", "1.50", "2.25", "30.13", "0.900", "-"]
    assert str(ablation.Row("x", 1, 1, 1, 1, 1, 1, 0.1234)).endswith(" 0.123")
    assert len(str(row)) == len(ablation.Row.HEADER)


def test_contact_sheet_shows_the_first_and_the_last_frame_of_every_row():
    video = torch.arange(21, dtype=torch.uint8).view(21, 1, 1, 1).expand(21, 8, 6, 3)
    sheet = contact_sheet({"a": video, "b": 255 - video})
    assert sheet.size == (LABEL + FRAMES * 6 * FACTOR, 2 * 8 * FACTOR)
    left, right = LABEL + 1, sheet.width - 1
    assert [sheet.getpixel((x, y)) for x, y in ((left, 0), (right, 0), (left, 31), (right, 31))] == [
        (0, 0, 0), (20, 20, 20), (255, 255, 255), (235, 235, 235)
    ]  # fmt: skip


def test_lpips_needs_its_weights_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert not lpips.available() and lpips.distance() is None


def test_both_benchmarks_are_registered():
    assert {"ablation", "cuda"} <= set(bench.BENCHMARKS)
    assert "ablation" in bench.DEFAULT and "cuda" not in bench.DEFAULT


def test_a_table_in_tasks(tmp_path, monkeypatch):
    """Every row is measured for every pair, the first one here; a second pair is a task."""
    monkeypatch.chdir(tmp_path)
    setup = Setup(chunks=2, steps=8)
    known = {"chunkwise": 0.1, "teacache": 0.1, "history": 1, "budget": 1.0, "fewer steps": 6}
    table = ablation.Table("2", known, setup, ablation.PAIRS[:2], Workers())
    table.measure(ablation.lines_2(setup, known))
    names = [line.name for line in ablation.lines_2(setup, known)]
    assert [row.name for row in table.rows] == names == list(table.pictures)
    assert table.rows[0].computed == table.rows[0].flops == 1
    assert table.rows[1].computed == pytest.approx(6 / 8)
