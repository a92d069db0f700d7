"""From a recording to lists: the split is the best there is, targets are met or the nearest said, rows load again."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from dummy import DummyDenoiser

from flowcache_core.calibrate import prior
from flowcache_core.calibrate.choose import Chooser, Target, preset_row
from flowcache_core.calibrate.record import Record
from flowcache_core.calibrate.recording import Facts, Recording, offset_of
from flowcache_core.calibrate.search import error_of
from flowcache_core.calibrate.tables import FORECAST, Split
from flowcache_core.commands.preset_file import write
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.errors import SettingError
from flowcache_core.plan import blockwise, staggered
from flowcache_core.presets import load_preset
from flowcache_core.report.record import Recorder
from flowcache_core.schedule import shifted

STEPS, CHUNKS = 12, 4


def bending(item):
    """The first chunk bends more; velocities answer to the latents."""
    strength = 3.0 if item.chunk.index == 0 else 1.0
    return torch.sin(strength * 4 * item.sigma + torch.arange(8.0).view(1, 1, 2, 2, 2)) + 0.1 * item.latents


def noise():
    return torch.randn(1, 1, 2 * CHUNKS, 2, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def recording() -> Recording:
    recording = Recording(
        Facts("mine", "abc", 3.0, 4.0, "euler", "blockwise", STEPS), CHUNKS, sources=("a prompt, seed 0",)
    )
    policy = Record(grams=recording.grams)
    generate(
        DummyDenoiser(bending),
        EngineSettings(blockwise(2 * CHUNKS, 2, STEPS), shifted(STEPS, 3.0), policy=policy),
        noise(),
    )
    return recording


@pytest.fixture(scope="module")
def chooser(recording) -> Chooser:
    return Chooser(recording)


def test_the_split_is_the_best_of_all(chooser):
    first, later = chooser.tables.first, chooser.tables.later
    for total in (8, 13, 20, 31, 48):
        least = min(
            prior.video_error(first[a].error, later[b].error, CHUNKS)
            for a, b in product(first, later)
            if b <= a and total - CHUNKS < a + 3 * b <= total
        )
        way = chooser.best(total)
        assert chooser.error(way) == least
        assert total - CHUNKS < way.total(CHUNKS) <= total and way.later <= way.first


def test_the_first_chunk_gets_more_where_it_bends_more(chooser):
    way = chooser.best(24)
    assert way.first >= 2 * way.later


def test_lists_have_the_least_error_of_the_prior(chooser, recording):
    """Every list of as many steps, by brute force over a smaller number."""
    from itertools import combinations

    levels = recording.grams.levels
    weights = prior.LATER.weights(levels)
    gram = recording.grams.later.mean()
    details = {"correction": 2, "forecast_share": prior.FORECAST_SHARE}
    for count in (3, 4):
        tried = [(0, *inner, STEPS - 1) for inner in combinations(range(1, STEPS - 1), count - 2)]
        least = min(error_of(gram, levels, one, 1, weights, **details) for one in tried)
        assert chooser.tables.later[count].error == pytest.approx(least)


def test_more_steps_are_never_expected_to_be_worse(chooser):
    expected = [chooser.psnr(way) for way in chooser.curve]
    assert len(expected) > 20
    assert all(b >= a - 1e-9 for a, b in zip(expected, expected[1:], strict=False))
    assert chooser.curve[-1] == Split(STEPS, STEPS)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.73, 1.0])
def test_a_share_is_met_from_below_by_less_than_a_step_a_chunk(chooser, share):
    choice = chooser.choose(Target(share=share))
    assert choice.met and share - 1 / STEPS < choice.share <= share + 0.5 / (STEPS * CHUNKS)
    assert choice.share == choice.split.total(CHUNKS) / (CHUNKS * STEPS)


def test_a_speed_up_counts_passes_that_cannot_be_spared(recording):
    plain = Chooser(recording).choose(Target(speed_up=3.0))
    assert plain.split.total(CHUNKS) <= STEPS * CHUNKS / 3
    clean = Chooser(recording, extra_passes=1).choose(Target(speed_up=3.0))
    assert (clean.split.total(CHUNKS) + CHUNKS) * 3 <= (STEPS + 1) * CHUNKS
    assert clean.split.total(CHUNKS) < plain.split.total(CHUNKS)


def test_seconds_need_a_clock(chooser):
    choice = chooser.choose(Target(seconds=1.0), seconds_per_step=0.2)
    assert choice.met and choice.split.total(CHUNKS) * 0.2 / CHUNKS <= 1.0
    with pytest.raises(SettingError, match="target seconds: got 1.0, accepted: a recording whose steps were timed"):
        chooser.choose(Target(seconds=1.0))


def test_decibels_take_the_fewest_steps_that_are_expected_to_do(chooser):
    wanted = chooser.psnr(chooser.best(24)) - 0.01
    choice = chooser.choose(Target(psnr=wanted))
    assert choice.met and choice.expected >= wanted
    cheaper = [way for way in chooser.curve if way.total(CHUNKS) < choice.split.total(CHUNKS)]
    assert all(chooser.psnr(way) < wanted for way in cheaper)


@pytest.mark.parametrize("target", [Target(share=0.01), Target(speed_up=100.0), Target(seconds=1e-6)])
def test_what_cannot_be_met_gives_the_nearest_and_says_so(chooser, target):
    choice = chooser.choose(target, seconds_per_step=1.0)
    assert not choice.met and choice.split == Split(2, 2)


@pytest.mark.parametrize(
    "values",
    [{}, {"share": 0.5, "psnr": 40.0}, {"share": 1.5}, {"share": float("nan")}, {"speed_up": 0.5}, {"psnr": True}],
)
def test_targets_that_are_none(values):
    with pytest.raises(SettingError, match="target"):
        Target(**values)


@pytest.mark.parametrize("chunks", [1, 2, 9])
def test_videos_of_other_lengths(recording, chunks):
    choice = Chooser(recording, chunks).choose(Target(share=0.5))
    assert choice.met and 0.5 - 1 / STEPS < choice.share <= 0.5
    assert choice.policy.first[0] == choice.policy.computed[0] == 0


def test_the_longer_the_video_the_less_later_chunks_lose_to_the_first(recording):
    shares = [Chooser(recording, chunks).best(6 * chunks).later for chunks in (2, 4, 16)]
    assert shares == sorted(shares) and shares[0] < shares[-1]


def test_side_by_side_the_count_is_what_chunks_compute(recording):
    """Where the policy lets all chunks compute at the same ticks, the split counts and weighs the steps of those."""
    beside = Recording(replace(recording.facts, plan="staggered", offset=4), CHUNKS, recording.grams)
    chooser = Chooser(beside)
    assert 2 < len(chooser.later) < STEPS - 2
    plan = staggered(2 * CHUNKS, 2, STEPS, 4)
    assert offset_of(plan) == 4 and offset_of(blockwise(2 * CHUNKS, 2, STEPS)) == STEPS
    for share in (0.5, 0.7):
        choice = chooser.choose(Target(share=share))
        settings = EngineSettings(plan, shifted(STEPS, 3.0), policy=choice.policy, quantity=FORECAST)
        recorder = Recorder.of(settings)
        generate(DummyDenoiser(bending), settings, noise(), observe=recorder)
        by_chunk = [0] * CHUNKS
        for step in recorder.record().steps_taken:
            by_chunk[step.chunk] += step.action == "compute"
        assert by_chunk == [choice.split.first, *[choice.split.later] * (CHUNKS - 1)]


def test_a_row_written_and_loaded_gives_the_same_latents(chooser, tmp_path):
    choice = chooser.choose(Target(share=0.5))
    path = tmp_path / "mine.json"
    write(path, {"mine": json.loads(json.dumps(preset_row(chooser, choice, "Half.", seeds=[1, 1])))})
    row = load_preset("mini", f"{path}:mine")
    assert row.policy == choice.policy and row.requires == {"steps": STEPS, "shift": 3.0}
    assert not row.measured and len(row.curve) > 4  # what is expected is said to be no measurement
    assert all(point.lists[1][-1] == STEPS - 1 for point in row.curve)
    settings = EngineSettings(blockwise(2 * CHUNKS, 2, STEPS), shifted(STEPS, 3.0), policy=choice.policy)
    made = [
        generate(DummyDenoiser(bending), replace(settings, policy=policy, quantity=row.quantity), noise())
        for policy in (choice.policy, row.fit(STEPS, 3.0)[0].policy)
    ]
    assert torch.equal(*made)
    with pytest.raises(SettingError, match="accepted: 12 steps at shift 3"):
        row.fit(STEPS + 1, 3.0)
    evidence = json.loads(path.read_text())["presets"]["mine"]["evidence"]
    assert evidence["model_sha256"] == "abc" and evidence["sources"] == ["a prompt, seed 0"]
    assert [point["share"] for point in evidence["expected"]] == sorted(
        point["share"] for point in evidence["expected"]
    )


def test_errors_of_the_first_chunk_are_in_every_chunk_after_it():
    assert prior.video_error(1.0, 0.0, 1) == prior.video_error(1.0, 0.0, 7) == 1.0
    assert prior.video_error(0.0, 1.0, 1) == 0.0
    assert prior.video_error(0.0, 1.0, 2) == 0.5
    assert prior.video_error(0.0, 1.0, 3) == pytest.approx((2 + prior.CARRY) / 3)
    assert np.all(np.diff(prior.FIRST.weights(shifted(STEPS, 3.0).sigmas)) < 0)
