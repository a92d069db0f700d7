"""Heads measured in somebody's run: where, what is kept, and the preset that comes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flowcache_core.calibrate.bundled import Mini
from flowcache_core.calibrate.measured_heads import VIDEOS, MeasuredHeads, MeasureHeads
from flowcache_core.calibrate.runs import Setup, generated
from flowcache_core.errors import SettingError
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.settings import KVSettings
from flowcache_core.plan import PLANS, blockwise
from flowcache_core.presets.own import OwnHeads, OwnPreset, kind_of_document, own_row
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.sparse.settings import SparseSettings

ASKED = MeasureHeads(block=16, stride=4, samples=1, candidates=(0.4,), dense_chunks=1)
SETUP = Setup(chunks=2, steps=3)
PAIR = ("a red circle moving right", 40)


def measured(path: Path | None = None, asked: MeasureHeads = ASKED, **changes: Any) -> tuple[MeasuredHeads, Any]:
    mini = Mini()
    denoiser = mini.denoiser([PAIR[0]], SETUP)
    spec = denoiser.kv_spec(mini.noise(SETUP.chunks, 0))
    plan = mini.settings(SETUP).plan
    heads = MeasuredHeads.resumed(asked.subject(mini.sha256, spec), {"model": "mine"}, 7, path)
    places = asked.places(plan, spec.tokens_per_frame, KVSettings(), heads.number)
    told: list[tuple[int, int]] = []
    run = heads.measuring(denoiser, places, lambda done, total: told.append((done, total)))
    latents = generated(mini, SETUP, [PAIR], denoiser=run, **changes)
    assert torch.equal(latents, generated(mini, SETUP, [PAIR], **changes))
    assert told[-1] == (24, 24)
    return heads, latents


def test_a_run_leaves_a_preset_that_travels(tmp_path: Path) -> None:
    heads, _ = measured(tmp_path / "kept.heads.json")
    own = heads.preset("mine", 0.7)
    assert own.preset.method.density == 0.7 and own.preset.model == "mine"
    again = OwnHeads.parse(own.text, "lists")
    assert again.preset.method == own.preset.method and kind_of_document(own.document) is OwnHeads
    assert own_row(json.loads(own.text), "lists").text == own.text
    path = own.save(tmp_path)
    assert OwnHeads.load(tmp_path, "mine").text == own.text and path.name == "mine.json"
    with pytest.raises(SettingError, match=r"lists: presets: got a preset of attention heads|attention heads"):
        OwnPreset.parse(own.text, "lists")
    with pytest.raises(SettingError, match="density"):
        heads.preset("mine", 0.01)
    # The same video again: everything is known.
    second = MeasuredHeads.resumed(heads.errors.subject, {}, 7, tmp_path / "kept.heads.json")
    assert second.number == 0 and second.videos == 1
    assert MeasuredHeads.resumed(heads.errors.subject, {}, 8, tmp_path / "kept.heads.json").number == 1


def test_a_step_that_was_reused_gives_way_to_the_next_computed_one() -> None:
    heads, _ = measured(policy=StaticSchedule(warmup_steps=1, computed=(0, 2)))
    (sample,) = heads.errors.complete
    assert (sample.chunk, sample.step) in ((1, 0), (1, 2))
    late = MeasureHeads(block=16, stride=4, samples=1, candidates=(0.4,), dense_chunks=1)
    plan = blockwise(6, 3, 3)
    places = {late.places(plan, 16, KVSettings(), video) for video in range(VIDEOS)}
    assert places == {((1, step),) for step in range(3)}


def test_what_cannot_be_measured() -> None:
    plan = blockwise(12, 3, 10)
    for change, field in (
        ({"block": 0}, "block"),
        ({"stride": 5}, "stride"),
        ({"samples": 0}, "samples"),
        ({"candidates": ()}, "shares"),
        ({"candidates": (1.0,)}, "shares"),
        ({"candidates": (0.5, 0.5)}, "shares"),
        ({"candidates": (0.5, 2.0)}, "shares"),
        ({"dense_chunks": -1}, "dense_chunks"),
    ):
        with pytest.raises(SettingError) as error:
            MeasureHeads(**{"block": 16, "stride": 4, **change})  # type: ignore[arg-type]
        assert error.value.field == field
    asked = MeasureHeads(block=16, stride=4)
    assert asked.candidates[-1] == 1.0
    for change, tokens, kv, field in (
        ({}, 5, KVSettings(), "block"),
        ({}, 16, KVSettings(1.0, Recent()), "dense_chunks"),
        ({"dense_steps": 10}, 16, KVSettings(), "dense_steps"),
    ):
        with pytest.raises(SettingError) as error:
            replace(asked, **change).places(plan, tokens, kv, 0)  # type: ignore[arg-type]
        assert error.value.field == field


def test_no_step_is_measured_that_would_run_dense() -> None:
    """Where chunks overlap and little is kept, a context shrinks while a chunk takes its steps."""
    plan, kv = PLANS["staggered"].abreast(3, 10).plan(18, 10), KVSettings(1.0, Recent(), at_finish=True)
    asked = MeasureHeads(block=16, stride=4, samples=8, dense_chunks=3, dense_steps=2)
    sparse = SparseSettings(dense_chunks=3, dense_steps=2).sparse_steps(plan, 16, kv)
    assert sparse == {chunk: (2, 3, 4, 5) for chunk in (3, 4, 5)}
    places = {place for video in range(VIDEOS) for place in asked.places(plan, 16, kv, video)}
    assert len(places) > 5 and all(step in sparse.get(chunk, ()) for chunk, step in places)
