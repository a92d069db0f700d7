"""Schedule search: exact against brute force, and right about what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from dummy import DummyDenoiser

from flowcache_core.calibrate.record import Record
from flowcache_core.calibrate.search import best_schedules, error_of, gap_error
from flowcache_core.calibrate.tables import Split, calibrated, even, measured_reach, searched, splits
from flowcache_core.commands import calibrate as command
from flowcache_core.commands import preset_file
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.errors import SettingError
from flowcache_core.plan import blockwise
from flowcache_core.reuse.forecast import Forecast
from flowcache_core.reuse.never import Never
from flowcache_core.reuse.quantity import Velocity
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.schedule import shifted

STEPS = 9
SIGMAS = shifted(STEPS, 3.0).sigmas


def random_gram(seed: int, rank: int = 4) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(STEPS, rank)).cumsum(0)
    return rows @ rows.T


def total_error(gram, computed, order, correction=0) -> float:
    total = 0.0
    for i in range(len(computed) - 1):
        gap = range(computed[i] + 1, computed[i + 1])
        total += gap_error(gram, SIGMAS, gap, computed[max(0, i - order) : i + 1])
        if correction:
            total += gap_error(gram, SIGMAS, gap, computed[max(0, i + 1 - correction) : i + 2])
    return total


@pytest.mark.parametrize(("order", "correction"), [(0, 0), (1, 0), (2, 0), (1, 1), (1, 2), (1, 3), (2, 3)])
@pytest.mark.parametrize("seed", [0, 1])
def test_search_finds_what_brute_force_finds(order, correction, seed):
    gram = random_gram(seed)
    found = best_schedules(gram, SIGMAS, order, correction=correction)
    assert sorted(found) == list(range(2, STEPS + 1))
    for count, best in found.items():
        inner = combinations(range(1, STEPS - 1), count - 2)
        least = min(total_error(gram, (0, *middle, STEPS - 1), order, correction) for middle in inner)
        assert best.error == pytest.approx(least, abs=1e-12)
        assert total_error(gram, best.computed, order, correction) == pytest.approx(best.error, abs=1e-12)
        assert error_of(gram, SIGMAS, best.computed, order, correction=correction) == pytest.approx(best.error)
        assert len(best.computed) == count


def test_errors_that_do_not_reach_the_end_cost_nothing():
    weights = np.ones(STEPS)
    weights[:5] = 0.0
    found = best_schedules(random_gram(3), SIGMAS, 0, weights)
    assert found[5].computed[:2] == (0, 4) or found[5].error == pytest.approx(0.0)
    assert found[STEPS - 4].error <= best_schedules(random_gram(3), SIGMAS, 0)[STEPS - 4].error


@pytest.mark.parametrize(("order", "correction"), [(0, 0), (1, 0), (2, 0), (1, 1), (1, 2), (2, 3)])
def test_predicted_error_is_the_error_of_a_real_run(order, correction):
    """On velocities that do not depend on the latents nothing feeds back: prediction and run must agree."""
    shapes = torch.randn(3, 1, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def rule(item):
        s = item.sigma
        return shapes[0] + shapes[1] * s**2 + shapes[2] * np.sin(5 * s)

    plan, schedule = blockwise(2, 2, STEPS), shifted(STEPS, 3.0)
    noise = torch.zeros(1, 1, 2, 2, 2, dtype=torch.float64)
    record = Record()
    base = generate(DummyDenoiser(rule), EngineSettings(plan, schedule, policy=record), noise)
    assert torch.equal(base, generate(DummyDenoiser(rule), EngineSettings(plan, schedule, policy=Never()), noise))
    # these velocities do not answer to the latents, so nothing of a corrected forecast's error is left
    share = 0.0 if correction else 1.0
    assert not record.grams.later.count  # one chunk
    gram = record.grams.first.mean()
    found = best_schedules(gram, schedule.sigmas, order, correction=correction, forecast_share=share)
    quantity = Forecast(order=order, correction=correction) if order else Velocity()
    single_gap = 0
    for best in found.values():
        gaps = [(a, b) for a, b in zip(best.computed, best.computed[1:], strict=False) if b > a + 1]
        policy = StaticSchedule(computed=best.computed)
        out = generate(DummyDenoiser(rule), EngineSettings(plan, schedule, policy=policy, quantity=quantity), noise)
        error = (out - base).square().mean().item()
        if len(gaps) <= 1:  # several gaps are taken as independent; a single one is exact
            single_gap += 1
            assert error == pytest.approx(best.error, rel=1e-6, abs=1e-18)
    assert single_gap >= 2


def velocities_by_chunk(item):
    """The first chunk's velocity bends, the later ones' is a straight line in sigma."""
    s = item.sigma
    bent = np.sin(9 * s) if item.chunk.index == 0 else s
    return torch.full_like(item.latents, 1.0) * (1.0 + bent)


def test_first_and_later_chunks_are_measured_apart():
    plan, schedule = blockwise(6, 2, STEPS), shifted(STEPS, 3.0)
    noise = torch.zeros(2, 1, 6, 2, 2, dtype=torch.float64)

    def video(policy):
        return generate(DummyDenoiser(velocities_by_chunk), EngineSettings(plan, schedule, policy=policy), noise)

    record = Record()
    base = video(record)
    grams = record.grams
    assert (grams.first.count, grams.later.count) == (2, 4)  # two videos of three chunks
    first, later = measured_reach(video, grams, base, probes=3)
    # nothing feeds back here: an error stays as large as it was made, in the share of the video that has it
    assert first == pytest.approx(np.full(STEPS, (1 / 3) ** 0.5), rel=1e-6)
    assert later == pytest.approx(np.full(STEPS, (2 / 3) ** 0.5), rel=1e-6)
    tables = searched(grams, (first, later), Forecast(1, correction=2))
    assert tables.later[2].error == pytest.approx(
        best_schedules(grams.later.mean(), schedule.sigmas, 1, later, correction=2)[2].error
    )
    assert tables.first[5].error > 1e3 * tables.later[5].error  # straight lines are forecast without error
    policy = tables.policy(Split(5, 3))
    assert (policy.first, policy.computed) == (tables.first[5].computed, tables.later[3].computed)
    assert calibrated(video, Forecast(1, correction=2), probes=3) == tables


@pytest.mark.parametrize("steps", [20, 50])
@pytest.mark.parametrize("chunks", [2, 4, 9])
@pytest.mark.parametrize("share", [0.2, 0.3, 0.5, 0.8, 1.0])
def test_every_split_computes_what_was_asked_for(steps, chunks, share):
    total = round(share * chunks * steps)
    found = splits(total, chunks, steps)
    assert len(found) == len(set(found)) >= 1
    for way in found:
        assert way.first + (chunks - 1) * way.later == total
        assert 2 <= way.later <= way.first + chunks and 2 <= way.first <= steps
        policy = even(way, steps)
        assert (len(policy.first), len(policy.computed)) == (way.first, way.later)


@pytest.mark.parametrize("place", ["file/mine.json", "a\0b.json", "x" * 300 + ".json"])
def test_places_that_cannot_be_written_are_refused_before_the_work(monkeypatch, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("flowcache_core.mini.load_mini", lambda: pytest.fail("the work has begun"))
    with pytest.raises(SettingError, match="out: got .* can be written"):
        command.main(["--model", "mini", "--target", "0.5", "--out", str(tmp_path / place)])


def test_two_calibrations_into_one_file_both_keep_their_rows(tmp_path):
    code = """if True:
        import sys
        from pathlib import Path
        from flowcache_core.commands import preset_file as command
        for i in range(20):
            command.write(Path(sys.argv[1]), {f"{sys.argv[2]}-{i}": {}})
    """
    out = tmp_path / "mine.json"
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(out), name], cwd=Path(__file__).parents[2]) for name in "ab"
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert set(json.loads(out.read_text())["presets"]) == {f"{name}-{i}" for name in "ab" for i in range(20)}
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


def test_rows_that_cannot_be_written_after_all_are_printed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("flowcache_core.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(SettingError, match="the disk is full"):
        preset_file.keep(tmp_path / "mine.json", {"mine": {"computed": [0, 1]}})
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "presets": {"mine": {"computed": [0, 1]}}}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("taken", ["a folder", "no presets"])
def test_an_out_that_cannot_be_written_is_refused_before_the_work(monkeypatch, tmp_path, taken):
    out = tmp_path / "mine.json"
    out.mkdir() if taken == "a folder" else out.write_text("[1, 2]")
    monkeypatch.setattr("flowcache_core.mini.load_mini", lambda: pytest.fail("the work has begun"))
    with pytest.raises(SettingError, match="out: got" if taken == "a folder" else "preset file: got"):
        command.main(["--model", "mini", "--target", "0.5", "--out", str(out)])
    assert out.is_dir() or out.read_text() == "[1, 2]"


def test_an_out_with_presets_of_other_names_is_no_obstacle(monkeypatch, tmp_path):
    out = tmp_path / "mine.json"
    out.write_text('{"schema": 1, "presets": {}}')
    begun = staticmethod(lambda: (_ for _ in ()).throw(InterruptedError))
    monkeypatch.setattr("flowcache_core.calibrate.bundled.Mini.load", begun)
    with pytest.raises(InterruptedError):
        command.main(["--model", "mini", "--target", "0.5", "--out", str(out)])
