"""The preset auto: it reads the run when it begins and refuses nothing; named presets say which one fits."""

from __future__ import annotations

from typing import Any

import folder_paths
import pytest
import torch
from hostkit import NODES, hosts, latent, load, module, ours, sample, sigmas_of
from test_own_presets import CASES, LONG, SHARE, STEPS, Case, calibrate, causal, hold, magi_file, mini, model_with

SettingError = module("flowcache_core.errors").SettingError
last_record = module("nodes.adapters.run.settings").last_record

__all__ = ["magi_file"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path / "user"))
    return tmp_path / "user" / "default" / "flowcache" / "presets"


def auto(fidelity: float = 0.5) -> dict[str, Any]:
    return {"preset": "auto", "fidelity": fidelity}


def preset_of(model: Any) -> str:
    return module("nodes.adapters.run.settings").settings_of(model.model_options).slot.runs[-1].reuse.preset


def shares(case: Case, *fidelities: float) -> list[float]:
    return [last_record(case.run(auto(fidelity))[0]).computed_share for fidelity in fidelities]


@pytest.mark.parametrize("kind", CASES)
def test_it_runs_every_model_and_the_slider_changes_what_is_computed(kind, magi_file):
    case = CASES[kind]()
    fast, faithful = shares(case, 0.0, 1.0)
    assert 0 < fast < faithful < 1


def mini_of(steps: int) -> Case:
    case = mini()
    case.options["sigmas"] = sigmas_of(case.model, steps)
    return case


def test_the_packs_own_lists_of_the_model_that_runs():
    case = mini_of(20)
    model, out = case.run(auto())
    named, same = case.run("mini: balanced-20")
    assert torch.equal(out, same)
    assert preset_of(model) == "auto (mini: balanced-20)" and last_record(model).notes == last_record(named).notes


def test_another_model_of_the_same_architecture_has_lists_of_its_own():
    case = mini_of(8)
    case.options["start"] = latent(13, width=64, height=64)
    scenes = NODES["FlowCacheMiniModel"].execute(model="scenes").args[0]
    runs = [Case(model, case.sampler, **case.options).run(auto())[0] for model in (case.model, scenes)]
    assert [preset_of(model).split(":")[0] for model in runs] == ["auto (mini", "auto (scenes"]


def test_no_list_for_so_many_steps_takes_the_nearest_and_says_so():
    model, _ = mini_of(12).run(auto())
    (note,) = last_record(model).notes
    assert "no list is calibrated for 12 steps at shift 3 of flowcache_mini_transformer.safetensors" in note
    assert "made for 20 steps at shift 3; its quality here is not measured" in note


@pytest.mark.parametrize("sampler", [hosts, ours], ids=["host", "ours"])
def test_few_steps(sampler):
    model = model_with(load(), auto())
    plain = sample(load(), sampler(), start=latent(LONG), sigmas=sigmas_of(model, 4))[0]
    out = sample(model, sampler(), start=latent(LONG), sigmas=sigmas_of(model, 4))[0]
    assert torch.equal(out, plain)
    assert "nothing to reuse at 4 steps" in last_record(model).notes[0]
    assert "KV Cache Compressor" in last_record(model).notes[0]


def test_the_users_own_lists_go_first(folder):
    case = causal()
    recorded, out = case.run({"preset": "record"})
    own = calibrate(recorded, out)[0]
    before, _ = case.run(auto())
    assert "not measured" in last_record(before).notes[0]
    hold(preset=own, save=True)
    model, _ = case.run(auto())
    assert preset_of(model) == "auto (my: mine)" and last_record(model).notes == ()
    few, many = shares(case, 0.0, 1.0)
    assert few < many, "a preset of one run has lists for the whole slider"
    # A file of the folder that is none is left out, and that is said.
    (folder / "broken.json").write_text("{")
    model, _ = case.run(auto())
    assert preset_of(model) == "auto (my: mine)" and "broken.json" in last_record(model).notes[0]


def test_a_linked_preset_is_taken_for_other_runs_too():
    case = causal()
    recorded, out = case.run({"preset": "record"})
    own = calibrate(recorded, out, SHARE)[0]
    model = NODES["FlowCacheChunkwiseReuse"].execute(model=case.model, preset=auto(), own_preset=own).args[0]
    sample(model, case.sampler, start=latent(LONG), sigmas=sigmas_of(model, STEPS))
    assert preset_of(model) == "auto (my: mine)" and last_record(model).notes == ()
    sample(model, case.sampler, start=latent(LONG), sigmas=sigmas_of(model, 18))
    assert "made for 12 steps at shift 5; its quality here is not measured" in last_record(model).notes[0]


@pytest.mark.parametrize(
    ("name", "nearest"), [("mini: slow", "mini: slow-20"), ("skyreels-v2-1.3b-540p: fast", "mini")]
)
def test_a_named_preset_that_does_not_fit_names_the_one_that_does(name, nearest):
    case = mini_of(20)
    with pytest.raises(
        SettingError, match=f"FlowCache Chunkwise Reuse, preset {name}.*the nearest that fits: {nearest}"
    ):
        case.run(name)


def test_where_none_fits_auto_is_named():
    with pytest.raises(SettingError, match="auto, which takes the nearest lists"):
        mini_of(13).run("mini: slow")


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), None, "fast"])
def test_a_slider_beyond_its_ends(value):
    with pytest.raises(SettingError, match="FlowCache Chunkwise Reuse, fidelity"):
        model_with(load(), {"preset": "auto", "fidelity": value})


def test_it_is_the_default_and_old_workflows_choose_by_name():
    options = next(one for one in NODES["FlowCacheChunkwiseReuse"].define_schema().inputs if one.id == "preset").options
    assert [option.key for option in options[:3]] == ["auto", "custom", "record"]
