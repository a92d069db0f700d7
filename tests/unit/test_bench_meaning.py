"""Meaning in the benchmarks: judged on true videos, on held-out prompts, and written beside PSNR."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import compression, curve, meaning, recall
from benchmarks import results as folder
from benchmarks.methods import FAMILIES, Subject, by_rule, published_lists
from benchmarks.mini_runs import PROMPTS, pairs
from flowcache_core.calibrate.bundled import Mini, Scenes, scene_prompts
from flowcache_core.calibrate.runs import Setup
from flowcache_core.errors import SettingError
from flowcache_core.kv import COMPRESSORS
from flowcache_core.kv.settings import KVSettings
from flowcache_core.mini import data as clips
from flowcache_core.mini_recall import data as recall_data
from flowcache_core.mini_scenes import data as scenes
from flowcache_core.mini_scenes.evaluate import scenes_asked
from flowcache_core.report.video import pixels
from flowcache_core.reuse.schedule import StaticSchedule


def shown(videos: Tensor) -> list[Tensor]:
    """``[N, 3, T, H, W]`` in -1..1 as benchmarks have videos."""
    return list(pixels(videos.movedim(1, 4)))


def test_true_clips_of_the_mini_model_are_right_and_others_are_not() -> None:
    given = clips.random_clips(6, seed=3)
    videos = shown(clips.render(given, 45))
    rates = meaning.of_mini([(clip.prompt, 0) for clip in given], videos)
    assert rates == {name: (1.0, 6) for name in ("colour", "direction", "shape", "area")}
    other = {"red": "blue"}
    wrong = [replace(clip, colour=other.get(clip.colour, "red")).prompt for clip in given]
    assert meaning.of_mini([(prompt, 0) for prompt in wrong], videos)["colour"] == (0.0, 6)


def test_true_scenes_are_right_and_another_scenes_videos_are_not() -> None:
    given = meaning.held_out_scenes(4)
    videos = shown(scenes.render(given, scenes.first_frame(4)))
    batch = [(scene.prompt, i) for i, scene in enumerate(given)]
    right, swapped = meaning.right(meaning.of_scenes(batch, videos)), meaning.of_scenes(batch, videos[::-1])
    assert right is not None and right > 0.95
    assert meaning.right(swapped) < 0.8  # type: ignore[operator]


def test_questions_with_more_answers_count_more() -> None:
    assert meaning.right({"colour": (1.0, 3), "turns": (0.0, 1), "back": (0.0, 0), "all": (0.0, 9)}) == 0.75
    assert meaning.right({}) is None


def test_no_scene_is_calibrated_on_or_shown_in_the_docs() -> None:
    held_out = meaning.held_out_scenes(12)
    prompts = {scene.prompt for scene in held_out}
    assert len(prompts) == 12 and not prompts & set(Scenes.prompts)
    assert not prompts & {scene.prompt for scene in scenes_asked(64, 0)}
    eventful = [bool(s.back or s.changes or any(a.enters or a.turns for a in s.actors)) for s in held_out]
    assert eventful == [True, False] * 6
    assert meaning.held_out_scenes(4) == held_out[:4]
    assert [prompt for prompt, _ in pairs(1000, 8, "scenes")] == [scene.prompt for scene in held_out[:8]]
    assert not set(PROMPTS) & set(Mini.prompts)


def test_scenes_in_which_most_happens_are_calibrated_on_first() -> None:
    assert sorted(scene_prompts(8)) == sorted(scene.prompt for scene in scenes.random_scenes(8, 2**42))
    assert Scenes.prompts == scene_prompts(8) and "enters" in Scenes.prompts[0] and "still" in Scenes.prompts[-1]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """Benchmarks with one short chunk or two, which leave their files here."""
    monkeypatch.setattr(folder, "FOLDER", tmp_path)
    monkeypatch.setitem(curve.SETUPS, "blockwise", (Setup(chunks=1, steps=20), {}))
    monkeypatch.setattr(Subject, "shares", (0.2,))
    return tmp_path


def test_curve_writes_meaning_beside_psnr_and_goes_on(small: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert curve.main(["--pairs", "1", "--methods", "published budcache"]) == 0
    found = json.loads((small / "curve-blockwise.json").read_text())["figures"]
    assert found["model"] == "mini" and found["guidance"] == 3.0 and set(found["uncached"]) == {
        "colour", "direction", "shape", "area"
    }  # fmt: skip
    names = [(row["method"], row["point"]) for row in found["rows"]]
    assert len(names) == 6 and ("published budcache, velocity", "21") in names
    for row in found["rows"]:
        assert 0 <= row["right"] <= 1 and set(row["rates"]) == set(found["uncached"]) and row["psnr"] > 10
    assert "right" in capsys.readouterr().out
    assert curve.main(["--pairs", "1", "--methods", "published budcache,front"]) == 0
    again = json.loads((small / "curve-blockwise.json").read_text())["figures"]["rows"]
    assert again[:6] == found["rows"] and len(again) > 6
    assert (small / "curve-blockwise.png").stat().st_size > 10_000


def test_every_method_of_the_curve_can_run() -> None:
    """All of them build, for 50 and 20 steps and without guidance; three settings each where runs are dear."""
    for setup in (Setup(), Setup(steps=20), Setup(guidance=1.0)):
        subject = Subject("mini", setup, ())
        made = [method for family in FAMILIES for method in family(subject)]
        for method in made:
            policy = method.changes.get("policy")
            if policy is not None:
                policy.check(setup.steps)
        assert len({(method.name, method.point) for method in made}) == len(made)
    few = Subject("scenes", Setup(guidance=2.0), (), few=True)
    assert len(list(by_rule(few))) == 9 and len(list(published_lists(few))) == 12
    lists = [method.changes["policy"] for method in by_rule(few)][:3]
    same, *longer = [tables if isinstance(tables, StaticSchedule) else tables.lists(50) for tables in lists]
    totals = [len(tables.first or tables.computed) + 3 * len(tables.computed) for tables in (same, *longer)]
    assert totals[0] == pytest.approx(totals[1], abs=4) and totals[1] == totals[2]


def test_compression_asks_for_meaning(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "LONG", Setup(chunks=2))
    monkeypatch.setattr(compression, "BUDGET", 1.0)
    monkeypatch.setattr(compression, "RECALL_STEPS", 2)
    monkeypatch.setattr(recall_data, "COVERED", 1)
    monkeypatch.setattr(recall, "SAMPLES", 1)
    only = {name: compression.COMPRESSORS[name] for name in ("recent",)}
    monkeypatch.setattr(compression, "COMPRESSORS", only)
    assert compression.main(["--pairs", "1", "--steps", "4"]) == 0
    found = json.loads((small / "compression.json").read_text())["figures"]
    (row,) = found["rows"]
    assert found["steps"] == 4 and set(row["rates"]) == set(found["uncached"])
    assert set(row["recall"]) == set(found["uncached_recall"]) and "colour" in row["recall"]


def test_recall_under_a_budget_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall_data, "COVERED", 1)  # shorter videos
    seen = recall.recalled(Setup(steps=2), 2, kv=KVSettings(budget=1.0, compressor=COMPRESSORS["recent"]()))
    assert list(seen) == ["back", "colour", "shape", "place", "first", "later"]
    assert all(count <= 2 for _, count in seen.values())
    assert recall.recall_text(seen).startswith("back ")


def test_the_curve_asks_for_recall(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of methods that are measured already too; of other steps and solvers, with theirs."""
    monkeypatch.setattr(recall, "SAMPLES", 1)
    monkeypatch.setattr(recall_data, "COVERED", 1)  # shorter videos
    monkeypatch.setitem(curve.SETUPS, "blockwise", (Setup(chunks=1, steps=20), {}))
    monkeypatch.setattr(Subject, "shares", (0.2,))
    only = ["--model", "scenes", "--pairs", "1", "--methods", "fewer"]
    assert curve.main(only) == 0
    assert curve.main([*only, "--recall"]) == 0
    found = json.loads((small / "curve-scenes-blockwise.json").read_text())["figures"]
    assert len(found["rows"]) == 2 and all("back" in row["recall"] for row in found["rows"])
    assert [row["computed"] for row in found["rows"]] == [0.2, 0.2]  # of the uncached run's steps
    assert "back" in found["uncached_recall"]
    with pytest.raises(SettingError, match="for --recall"):
        curve.main(["--recall"])


def test_recall_rows_are_kept(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = [title for title, _, _ in recall.choices()]
    assert len({*titles}) == len(titles) > 20 and {"recent, 1 chunks", "preset fast"} <= {*titles}
    monkeypatch.setattr(recall, "choices", lambda: [("everything kept", 2, {})])
    assert recall.main(["--samples", "2"]) == 0
    monkeypatch.setattr(recall, "recalled", lambda *_, **__: pytest.fail("measured again"))
    assert recall.main(["--samples", "2"]) == 0
    found = json.loads((small / "recall.json").read_text())["figures"]
    assert [row["name"] for row in found["rows"]] == ["everything kept"] and found["samples"] == 2


def test_bad_counts_are_refused() -> None:
    with pytest.raises(SettingError, match="pairs"):
        compression.main(["--pairs", "0"])


def test_colours_in_uint8_are_colours() -> None:
    video = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 2, 1).expand(3, 1, 2, 3)
    assert torch.equal(meaning.as_clip(video).unique(), torch.tensor([-1.0, 1.0]))
