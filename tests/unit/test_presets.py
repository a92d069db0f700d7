"""Presets: every row of every file builds, and calibrated ones say what they fit."""

from __future__ import annotations

import json

import pytest

from flowcache_core.errors import SettingError
from flowcache_core.presets import FOLDER, load_preset, model_file, models, preset_names
from flowcache_core.report.events import RunStarted
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.forecast import Forecast
from flowcache_core.reuse.schedule import StaticSchedule, stretch
from flowcache_core.video.magi import MagiSettings
from flowcache_core.video.skyreels import SkyReelsSettings

ROWS = [(model, name) for model in models() for name in preset_names(model)]


@pytest.mark.parametrize(("model", "name"), ROWS)
def test_every_row_builds_and_is_described(model, name):
    preset = load_preset(model, name)
    assert preset.text.endswith(".") and preset.policy.name == model_file(model)["presets"][name]["policy"]["name"]
    if isinstance(preset.policy, StaticSchedule):
        assert preset.computed_steps == len(preset.policy.computed)


@pytest.mark.parametrize("model", models())
def test_no_field_is_written_twice(model):
    def once(pairs):
        names = [name for name, _ in pairs]
        assert len(names) == len(set(names)), names
        return dict(pairs)

    json.loads((FOLDER / f"{model}.json").read_text(encoding="utf-8"), object_pairs_hook=once)


def started(plan="blockwise", chunks=4, prefix_chunks=0) -> RunStarted:
    return RunStarted(plan, chunks, prefix_chunks, 50, 50 * (chunks - prefix_chunks), 0, 0, None, ())


def calibrated(tmp_path, **changes):
    row = {
        "text": "Calibrated: 3 of 10 steps computed.",
        "policy": {"name": "schedule", "warmup_steps": 1, "computed": [0, 4, 9]},
        "quantity": {"name": "forecast", "order": 2},
        "computed_steps": 3,
        "requires": {"steps": 10, "shift": 3.0},
        "evidence": {"curve": [{"share": 0.2, "psnr": 20.0}, {"share": 0.4, "psnr": 30.0}]},
        **changes,
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"schema": 1, "presets": {"mine": row}}))
    return str(path)


def test_a_calibrated_file_is_a_preset(tmp_path):
    preset = load_preset("mini", calibrated(tmp_path))
    assert preset.name == "mine" and preset.quantity == Forecast(order=2)
    assert preset.expected_psnr(0.3, started()) == pytest.approx(25.0)
    assert preset.expected_psnr(0.9, started()) is None
    assert preset.fit(10, 3.0) == preset.fit(10, 3.001) == preset.fit(10) == (preset, None)


@pytest.mark.parametrize(("steps", "shift"), [(20, 3.0), (10, 5.0), (10, 3.1)])
def test_another_run_is_refused_or_stretched_with_a_warning(tmp_path, steps, shift):
    preset = load_preset("mini", calibrated(tmp_path))
    with pytest.raises(SettingError, match=r"preset mine: got .*accepted: 10 steps at shift 3"):
        preset.fit(steps, shift)
    fitted, warning = preset.fit(steps, shift, rescale=True)
    assert fitted.policy.computed == stretch((0, 4, 9), 10, steps)
    assert fitted.policy.computed[-1] == steps - 1 and fitted.computed_steps == len(fitted.policy.computed)
    assert warning and "calibrated for 10 steps at shift 3" in warning and fitted.expected_psnr(0.3, started()) is None


def test_whatever_a_preset_requires_is_compared(tmp_path):
    """Guidance too, and for policies without a table to stretch."""
    requires = {"steps": 50, "shift": 8.0, "guidance": 6.0}
    policy = {"name": "chunkwise", "threshold": 0.2}
    path = calibrated(tmp_path, requires=requires, policy=policy)
    assert SkyReelsSettings.of_preset("skyreels-v2-1.3b-540p", path).policy == Chunkwise(threshold=0.2)
    for changes, given in (
        ({"steps": 40}, "40 steps"),
        ({"shift": 5.0}, "50 steps at shift 5"),
        ({"guidance": 3.0}, "50 steps at guidance 3"),
    ):
        with pytest.raises(SettingError, match=f"mine: got '{given}', accepted: 50 steps at shift 8 at guidance 6"):
            SkyReelsSettings.of_preset("skyreels-v2-1.3b-540p", path, **changes)
    preset, warning = load_preset("mini", path).fit(40, 8.0, rescale=True)
    assert preset.policy == Chunkwise(threshold=0.2) and "with 40 steps its quality is not known" in str(warning)


def test_magi_has_no_shift_to_require(tmp_path):
    row = {"requires": {"steps": 64}, "policy": {"name": "schedule", "computed": [0, 63]}}
    assert MagiSettings.of_preset("magi-1-4.5b", calibrated(tmp_path, **row)).policy.computed == (0, 63)
    for requires in ({"steps": 64, "shift": 3.0}, {"shift": 3.0}, {"steps": 64, "windows": 4}):
        with pytest.raises(SettingError, match=r'presets.mine.requires: .* accepted: {"steps": number}'):
            load_preset("magi-1-4.5b", calibrated(tmp_path, **row | {"requires": requires}))


@pytest.mark.parametrize("model", models())
def test_shipped_tables_are_for_the_published_run(model):
    for name in preset_names(model):
        preset, run = load_preset(model, name), model_file(model).get("run")
        if run is None or preset.policy.name != "schedule":
            continue
        assert preset.fit(run["steps"], run.get("shift")) == (preset, None)
        with pytest.raises(SettingError, match=f"preset {name}: got '{2 * run['steps']} steps'"):
            preset.fit(2 * run["steps"], run.get("shift"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2, "presets": {}}', '{"schema": 1}'])
def test_other_files_are_no_presets(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(SettingError, match="preset file"):
        load_preset("mini", str(path))


def test_every_row_of_a_file_can_be_reached(tmp_path):
    path = tmp_path / "mine.json"
    content = json.loads(open(calibrated(tmp_path)).read())
    content["presets"]["other"] = {**content["presets"]["mine"], "computed_steps": 4}
    path.write_text(json.dumps(content))
    assert load_preset("mini", str(path)).name == "mine"
    other = load_preset("mini", f"{path}:other")
    assert (other.name, other.computed_steps) == ("other", 4)
    with pytest.raises(SettingError, match=r"preset: got 'third', accepted: mine, other \(.*mine.json\)"):
        load_preset("mini", f"{path}:third")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"text": None, "policy": None}, "presets.mine.text"),
        ({"policy": None}, "presets.mine.policy"),
        ({"policy": 5}, "policy"),
        ({"policy": {"name": ["schedule"]}}, "policy"),
        ({"policy": {"name": "schedule", "computed": 4}}, "computed"),
        ({"policy": {"name": "schedule", "computed": [0, "4"]}}, "computed"),
        ({"policy": {"name": "schedule", "always_last": "no"}}, "always_last"),
        ({"policy": {"name": "chunkwise", "distance": 7}}, "distance"),
        ({"policy": {"name": "chunkwise", "distance": {"name": "time", "polynomial": "x"}}}, "polynomial"),
        ({"quantity": 3}, "reused quantity"),
        ({"quantity": {"name": "forecast", "order": "2"}}, "order"),
        ({"quantity": {"name": "velocity", "order": 2}}, "reused quantity velocity"),
        ({"requires": {"steps": 10}}, "presets.mine.requires"),
        ({"requires": [10, 3.0]}, "presets.mine.requires"),
        ({"evidence": {"curve": [{"share": 0.5}]}}, "presets.mine.evidence.curve"),
        ({"evidence": {"curve": [{"share": 0.5, "psnr": 30, "first_share": "1"}]}}, "presets.mine.evidence.curve"),
        ({"evidence": [0.5, 30.0]}, "presets.mine.evidence"),
        ({"policy": {"name": "schedule", "first": 4}}, "first"),
        ({"policy": {"name": "schedule", "first": [1, 4]}}, "first_chunk_steps"),
        ({"evidence": {"guidance": "3"}}, "presets.mine.evidence.guidance"),
        ({"computed_steps": "many"}, "presets.mine.computed_steps"),
        ({"attention": "sparse"}, "presets.mine.attention"),
    ],
)
def test_a_malformed_row_names_its_field(tmp_path, changes, field):
    path = tmp_path / "mine.json"
    content = json.loads(open(calibrated(tmp_path)).read())
    row = content["presets"]["mine"] | changes
    content["presets"]["mine"] = {key: value for key, value in row.items() if value is not None}
    path.write_text(json.dumps(content))
    with pytest.raises(SettingError) as caught:
        load_preset("mini", str(path))
    assert caught.value.field == field


def test_a_row_that_is_no_object_is_refused(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"schema": 1, "presets": {"mine": "fast"}}))
    with pytest.raises(SettingError, match="presets.mine: got 'fast'"):
        load_preset("mini", str(path))


def test_unknown_names_list_the_presets_there_are():
    with pytest.raises(SettingError, match=r"preset: got 'turbo', accepted: vanilla, .*model mini"):
        load_preset("mini", "turbo")


def test_the_expectation_is_for_the_plan_that_was_measured():
    preset = load_preset("mini", "balanced")
    share = 0.3
    assert preset.expectation(share, started()) == (
        f"{share:.2f} of the steps computed; expected {preset.expected_psnr(share, started()):.0f} dB on this model "
        f"(median, calibrated at guidance {preset.guidance:g})"
    )
    assert preset.expectation(share, started(plan="staggered")) is None
    assert load_preset("mini", "reference-slow").expectation(share, started()) is None


@pytest.mark.parametrize(("chunks", "prefix"), [(1, 0), (4, 0), (20, 0), (5, 2)])
def test_the_expectation_of_a_preset_does_not_change_with_the_length_of_the_video(chunks, prefix):
    """The share does: the first chunk computes more steps than the others, and a given beginning leaves none."""
    preset = load_preset("mini", "balanced")
    first, later = len(preset.policy.first), len(preset.policy.computed)
    generated = chunks - prefix
    total = (first if prefix == 0 else later) + (generated - 1) * later
    expected = preset.expected_psnr(total / (50 * generated), started(chunks=chunks, prefix_chunks=prefix))
    shipped = next(point.psnr for point in preset.curve if point.first * 50 == first and point.later * 50 == later)
    assert expected == pytest.approx(shipped, abs=0.01)


@pytest.mark.parametrize("steps", [20, 30, 50, 100])
@pytest.mark.parametrize("name", ["slow", "balanced", "fast"])
def test_a_stretched_schedule_keeps_its_share_and_both_ends(name, steps):
    preset = load_preset("mini", name)
    policy = preset.fit(steps, rescale=True)[0].policy
    for made, table in ((preset.policy.computed, policy.computed), (preset.policy.first, policy.first)):
        assert len(table) == round(len(made) * steps / 50) and table[0] == 0 and table[-1] == steps - 1
        assert steps != 50 or table == made
