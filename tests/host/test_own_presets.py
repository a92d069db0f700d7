"""A preset of one's own in the graph: recorded, calibrated, linked, saved, shared as JSON, loaded elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import folder_paths
import pytest
import tiny_magi
import torch
from hostkit import (
    BLOCKWISE,
    NODES,
    STAGGERED,
    hosts,
    latent,
    load,
    module,
    node,
    ours,
    prompt,
    reuse,
    sample,
    sigmas_of,
)
from safetensors.torch import save_file
from test_recording import RECORD

SettingError = module("flowcache_core.errors").SettingError
records = module("nodes.adapters.run.records")
last_record = module("nodes.adapters.run.settings").last_record
LONG = 45  # 12 latent frames
STEPS = 12
SHARE = {"target": "share of steps", "share": 0.5}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path / "user"))
    return tmp_path / "user" / "default" / "flowcache" / "presets"


def model_with(model: Any, preset: Any) -> Any:
    """Chunkwise Reuse with a choice of its list, or with a linked preset."""
    if isinstance(preset, str):
        return node("ChunkwiseReuse", model=model, preset={"preset": preset})
    if "presets" in preset:
        return node("ChunkwiseReuse", model=model, preset={"preset": "mini: slow"}, own_preset=preset)
    return node("ChunkwiseReuse", model=model, preset=preset)


def calibrate(model: Any, latents: Any = None, target: Any = SHARE, name: str = "mine", **inputs: Any) -> Any:
    """(preset, text, picture)."""
    kind = type(
        "InAGraph", (NODES["FlowCacheCalibrate"],), {"hidden": SimpleNamespace(prompt=None, extra_pnginfo=None)}
    )
    given = {} if latents is None else {"latent": {"samples": latents}}
    return kind.execute(model=model, target=target, name=name, **given, **inputs).args


def hold(**inputs: Any) -> Any:
    """FlowCache Preset: its output."""
    values = {"hold": False, "file": "none", "lists": "", "name": "", "save": False, **inputs}
    return NODES["FlowCachePreset"].execute(**values)


class Case:
    """A model with all that makes a video of four chunks of it."""

    def __init__(self, model: Any, sampler: Any, **options: Any) -> None:
        self.model, self.sampler, self.options = model, sampler, options

    def run(self, preset: Any) -> tuple[Any, torch.Tensor]:
        patched = model_with(self.model, preset)
        return patched, sample(patched, self.sampler, **self.options)[0]


@pytest.fixture(scope="module")
def magi_file(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    save_file(tiny_magi.weights(), root / "tiny_magi.safetensors")
    patch = pytest.MonkeyPatch()
    place = ([str(root)], folder_paths.supported_pt_extensions)
    patch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", place)
    folder_paths.filename_list_cache.clear()
    yield
    patch.undo()
    folder_paths.filename_list_cache.clear()


def skyreels() -> Case:
    model = load(causal=False)
    options = {"start": latent(LONG), "sigmas": sigmas_of(model, STEPS), "negative": prompt(8), "cfg": 3.0}
    return Case(model, ours(STAGGERED), **options)


def causal() -> Case:
    model = load()
    return Case(model, hosts(), start=latent(LONG), sigmas=sigmas_of(model, STEPS))


def mini() -> Case:
    model = NODES["FlowCacheMiniModel"].execute().args[0]
    options = {"start": latent(LONG, width=64, height=64), "sigmas": sigmas_of(model, STEPS)}
    texts = {"positive": node("MiniPrompt", text="a red circle moving right"), "negative": node("MiniPrompt", text="")}
    return Case(model, ours({**BLOCKWISE, "solver": "euler"}), **options, **texts)


def magi() -> Case:
    variant = {"variant": "base", "text_scale": 7.5, "previous_scale": 1.5, "kv_ranges": ""}
    model = node("LoadMagiModel", model_name="tiny_magi.safetensors", weight_dtype="default", variant=variant)
    plan = {"plan": "sliding window", "chunk_frames": 2, "window_chunks": 4, "solver": "euler", "clean_pass": True}
    text = [[torch.randn(1, 5, tiny_magi.TEXT_DIM, generator=torch.Generator().manual_seed(5)), {}]]
    start = {"samples": torch.zeros(1, 16, 8, 4, 4)}
    return Case(
        model, ours(plan), positive=text, start=start, sigmas=node("MagiSchedule", steps="16", shortcut_mode="8,16,16")
    )


CASES = {"tiny SkyReels": skyreels, "host's sampler": causal, "mini": mini, "tiny MAGI": magi}


@pytest.mark.parametrize("kind", CASES)
def test_recorded_calibrated_saved_shared_and_loaded(kind, magi_file, folder, tmp_path, monkeypatch):
    case = CASES[kind]()
    plain = sample(case.model, case.sampler, **case.options)[0]
    recording, out = case.run(RECORD)
    assert torch.equal(out, plain), "recording changes the run"
    preset, text, picture = calibrate(recording, out)
    assert "steps computed in the first chunk" in text and "dB expected" in text and "times as fast" in text
    assert picture.shape[0] == 1 and float(picture.std()) > 0.02
    linked, fast = case.run(preset)
    assert not torch.equal(fast, plain)
    steps = case.options["sigmas"].numel() - 1
    row = preset["presets"]["mine"]
    taken = last_record(linked)
    by_chunk = [sum(s.chunk == chunk and s.action == "compute" for s in taken.steps_taken) for chunk in range(4)]
    # Chunks side by side compute at the same ticks: counted as the calibration counted them.
    assert by_chunk[0] == len(row["policy"]["first"]) and 0.3 < taken.computed_share <= 0.5
    assert row["requires"]["steps"] == steps

    held = hold(preset=preset, name="shared one", save=True)
    assert [path.name for path in folder.iterdir()] == ["shared one.json"]
    assert torch.equal(case.run("my: shared one")[1], fast)
    lists = held.ui["lists"][0]
    # Another machine: no file there, only what the workflow holds, after a way through JSON.
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path / "elsewhere"))
    lists = json.loads(json.dumps(lists))
    assert torch.equal(case.run(hold(lists=lists, file="shared one").args[0])[1], fast)
    assert torch.equal(case.run({"preset": "held in this workflow", "lists": lists})[1], fast)
    patched = NODES["FlowCacheChunkwiseReuse"].execute(
        **{"model": case.model, "preset": "my: shared one", "preset.lists": lists}
    )
    assert torch.equal(sample(patched.args[0], case.sampler, **case.options)[0], fast)
    assert not list((tmp_path / "elsewhere").rglob("presets")), "reading made a folder"


@pytest.fixture(scope="module")
def recorded():
    case = causal()
    model, out = case.run(RECORD)
    return case, model, out


@pytest.fixture(scope="module")
def preset(recorded):
    _, model, out = recorded
    return calibrate(model, out)[0]


class TestTargets:
    @pytest.mark.parametrize(
        ("target", "said"),
        [
            ({"target": "share of steps", "share": 0.01}, "share 0.01 cannot be met; the nearest is 2 of 12 steps"),
            ({"target": "speed-up", "speed_up": 90.0}, "speed-up 90 cannot be met; the nearest is 2 of 12 steps"),
            ({"target": "seconds", "seconds": 1e-6}, "seconds 1e-06 cannot be met; the nearest is 2 of 12 steps"),
            ({"target": "seconds", "seconds": 1000.0}, "12 of 12 steps computed in the first chunk and 12"),
            ({"target": "quality", "psnr": 99.0}, "12 of 12 steps"),
            ({"target": "quality", "psnr": 1.0}, "2 of 12 steps computed"),
        ],
    )
    def test_met_or_the_nearest(self, recorded, target, said):
        _, model, out = recorded
        document, text, _ = calibrate(model, out, target)
        assert said in text.splitlines()[0], text
        assert document["presets"]["mine"]["requires"]["steps"] == STEPS

    def test_a_speed_up_counts_the_clean_pass(self, recorded):
        _, model, out = recorded
        text = calibrate(model, out, {"target": "speed-up", "speed_up": 2.0})[1]
        share = float(text.split("%")[0].split(": ")[1]) / 100
        assert share * STEPS + 1 <= (STEPS + 1) / 2 + 0.2

    def test_longer_videos(self, recorded):
        _, model, out = recorded
        short, long = (calibrate(model, out, chunks=chunks)[0]["presets"]["mine"] for chunks in (2, 40))
        assert len(long["policy"]["computed"]) >= len(short["policy"]["computed"])
        assert long["evidence"]["chunks"] == 40


class TestWhatWasNotRecorded:
    def test_sampled_without(self, recorded):
        case, model, _ = recorded
        other = reuse(case.model)
        out = sample(other, case.sampler, **case.options)[0]
        with pytest.raises(
            SettingError, match="FlowCache Calibrate, model: got 'No recording: choose the preset record"
        ):
            calibrate(other, out)

    def test_not_sampled(self, recorded):
        with pytest.raises(SettingError, match="model: got 'No report: this MODEL was not sampled"):
            calibrate(model_with(recorded[0].model, RECORD))

    def test_a_model_of_no_node_of_ours(self):
        with pytest.raises(SettingError, match="comes from no FlowCache node"):
            calibrate(load())

    def test_an_interrupted_run_is_usable_as_far_as_whole_chunks_go(self, recorded):
        case = recorded[0]
        stopped = model_with(case.model, RECORD)
        calls = []

        def stop(args):
            calls.append(args)
            if len(calls) == 2 * (STEPS + 1) + 5:  # in the third chunk
                raise InterruptedError
            return args["denoised"]

        broken = stopped.clone()
        broken.set_model_sampler_post_cfg_function(stop)
        with pytest.raises(InterruptedError):
            sample(broken, case.sampler, **case.options)
        document, text, _ = calibrate(stopped)
        assert "note: 1 of 3 chunks were not finished or not finite, and are left out" in text
        kept = document["presets"]["mine"]["evidence"]["recorded_chunks"]
        assert kept == {"first": 1, "later": 1, "begun": 3}

    def test_interrupted_before_a_chunk_was_whole(self, recorded):
        case = recorded[0]
        stopped = model_with(case.model, RECORD)

        def stop(args):
            raise InterruptedError

        broken = stopped.clone()
        broken.set_model_sampler_post_cfg_function(stop)
        with pytest.raises(InterruptedError):
            sample(broken, case.sampler, **case.options)
        with pytest.raises(SettingError, match="a recording without a whole chunk"):
            calibrate(stopped)

    def test_runs_of_few_steps_say_what_helps_there(self, recorded):
        case = recorded[0]
        model = model_with(case.model, RECORD)
        out = sample(model, case.sampler, start=latent(LONG), sigmas=sigmas_of(model, 4))[0]
        assert "note: with 4 steps hardly one can be spared; KV Cache Compressor" in calibrate(model, out)[1]


REUSE = "FlowCache Chunkwise Reuse, preset mine: got "


class TestMadeForOthers:
    @pytest.mark.parametrize("sampler", [hosts, ours], ids=["host", "ours"])
    def test_steps_and_shift(self, recorded, preset, sampler):
        case = recorded[0]
        model = model_with(case.model, preset)
        with pytest.raises(SettingError, match=rf"{REUSE}'11 steps', accepted: .*12 steps at shift 5"):
            sample(model, sampler(), start=latent(LONG), sigmas=sigmas_of(model, 11))
        shifted = model_with(load(shift=3.0), preset)
        with pytest.raises(SettingError, match=rf"{REUSE}'12 steps at shift 3', accepted: .*12 steps at shift 5"):
            sample(shifted, sampler(), start=latent(LONG), sigmas=sigmas_of(shifted, STEPS))

    @pytest.mark.parametrize("sampler", [hosts, ours], ids=["host", "ours"])
    def test_another_architecture(self, preset, sampler):
        state_dict = module_state(3)
        model = model_with(load(state_dict), preset)
        refused = rf"{REUSE}'a model wan, 24 wide, 3 layers', accepted: wan, 24 wide, 2 layers, on"
        with pytest.raises(SettingError, match=refused):
            sample(model, sampler(), start=latent(LONG), sigmas=sigmas_of(model, STEPS))

    @pytest.mark.parametrize("sampler", [hosts, ours], ids=["host", "ours"])
    def test_another_file_of_the_same_architecture_runs_and_says_so(self, preset, sampler):
        other = load()
        other.cached_patcher_init = (load, ("/somewhere/finetune.safetensors",))
        model = model_with(other, preset)
        sample(model, sampler(), start=latent(LONG), sigmas=sigmas_of(model, STEPS))
        (note,) = last_record(model).notes
        assert note.startswith("preset mine was recorded on wan, 24 wide, 2 layers, and this is finetune.safetensors")

    def test_other_noise_levels_where_no_shift_describes_them(self, recorded):
        case = recorded[0]
        uneven = torch.linspace(1, 0, STEPS + 1) ** 2
        model = model_with(case.model, RECORD)
        out = sample(model, case.sampler, start=latent(LONG), sigmas=uneven)[0]
        document = calibrate(model, out)[0]
        assert document["presets"]["mine"]["requires"] == {"steps": STEPS}
        made = model_with(case.model, document)
        sample(made, case.sampler, start=latent(LONG), sigmas=uneven)
        with pytest.raises(SettingError, match=rf"{REUSE}'?noise levels that differ by up to 0\.\d+"):
            sample(made, case.sampler, start=latent(LONG), sigmas=torch.linspace(1, 0, STEPS + 1) ** 3)


def module_state(layers: int) -> Any:
    from hostkit import state_dict

    return state_dict(layers=layers)


def changed(preset: Any, **changes: Any) -> str:
    (name,) = preset["presets"]
    row = {**preset["presets"][name], **changes}
    return json.dumps({"schema": 1, "presets": {name: {k: v for k, v in row.items() if v is not None}}})


def other_lists(computed: Any) -> Any:
    """Evidence with lists for another share, as a calibration states them for the slider of auto."""
    return {"expected": [{"share": 0.4, "psnr": 40.0, "first": [0, 1, 11], "computed": computed}]}


BAD = {
    "no JSON": (lambda p: "{", "unreadable"),
    "a list": (lambda p: "[1]", 'JSON with "schema": 1 and "presets"'),
    "the future": (lambda p: json.dumps({**p, "schema": 2}), "schema: got 2, accepted: 1; update FlowCache"),
    "a schema that is none": (lambda p: json.dumps({**p, "schema": True}), 'JSON with "schema": 1 and "presets"'),
    "a recording": (lambda p: json.dumps({"schema": 1, "recording": {}}), 'JSON with "schema": 1 and "presets"'),
    "two presets": (lambda p: json.dumps({"schema": 1, "presets": {"a": {}, "b": {}}}), "one preset"),
    "no policy": (lambda p: changed(p, policy=None), "presets.mine.policy: nothing"),
    "a step beyond": (lambda p: changed(p, policy={"name": "schedule", "computed": [0, 99]}), "computed_steps: 99"),
    "no step 0": (lambda p: changed(p, policy={"name": "schedule", "computed": [1, 11]}), "computed_steps"),
    "steps of text": (lambda p: changed(p, policy={"name": "schedule", "computed": "0"}), "computed"),
    "an unknown policy": (lambda p: changed(p, policy={"name": "evil"}), "policy"),
    "requires nothing": (lambda p: changed(p, requires={"shift": 5.0}), "requires"),
    "lists beyond its steps": (lambda p: changed(p, evidence=other_lists([0, 99])), "evidence.expected"),
    "lists without step 0": (lambda p: changed(p, evidence=other_lists([1, 11])), "evidence.expected"),
    "lists of text": (lambda p: changed(p, evidence=other_lists("0, 11")), "evidence.expected"),
    "levels of text": (lambda p: changed(p, evidence={"sigmas": ["1"]}), "sigmas"),
    "a name with a path": (lambda p: json.dumps({"schema": 1, "presets": {"../x": p["presets"]["mine"]}}), "name"),
    "NaN": (lambda p: json.dumps(p).replace('"order": 1', '"order": NaN'), "NaN"),
}


class TestFilesThatCannotBeUsed:
    @pytest.mark.parametrize("kind", BAD)
    def test_in_the_workflow_and_in_the_folder(self, recorded, preset, folder, kind):
        make, message = BAD[kind]
        text = make(preset)
        with pytest.raises(SettingError, match="FlowCache Preset, lists") as refused:
            hold(lists=text)
        assert message in str(refused.value)
        with pytest.raises(SettingError, match="FlowCache Chunkwise Reuse, lists") as refused:
            model_with(recorded[0].model, {"preset": "held in this workflow", "lists": text})
        assert message in str(refused.value)
        folder.mkdir(parents=True)
        (folder / "bad.json").write_text(text)
        assert "my: bad" in [option.key for option in reuse_options()]  # the others are not to vanish with it
        for use, name in (
            (lambda: hold(file="bad"), "Preset"),
            (lambda: model_with(recorded[0].model, "my: bad"), "Chunkwise Reuse"),
        ):
            with pytest.raises(SettingError, match=rf"FlowCache {name}, (file|preset) bad\.json") as refused:
                use()
            assert message in str(refused.value)
        with pytest.raises(SettingError):
            hold(lists=text, save=True)
        assert [path.name for path in folder.iterdir()] == ["bad.json"]

    @pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "x" * 61, "con", "nul.txt", "a\0b", "ends.", "\ud800"])
    def test_names_that_are_none(self, recorded, preset, folder, name):
        with pytest.raises(SettingError, match="name"):
            hold(preset=preset, name=name, save=True)
        with pytest.raises(SettingError, match="name"):
            calibrate(recorded[1], recorded[2], name=name)
        assert not folder.exists()

    def test_a_preset_that_is_not_there(self, recorded, preset, folder):
        hold(preset=preset, save=True)
        with pytest.raises(SettingError, match="preset: got 'my: other', accepted: auto, custom, record, my: mine"):
            model_with(recorded[0].model, "my: other")
        with pytest.raises(SettingError, match="FlowCache Preset, preset: got 'nothing'"):
            hold()

    def test_a_folder_that_cannot_be_written(self, preset, folder, tmp_path):
        (tmp_path / "user").write_text("a file where the folder should be")
        with pytest.raises(SettingError, match="FlowCache Preset, name"):
            hold(preset=preset, save=True)

    def test_a_link_of_something_else(self, recorded):
        for value in ({"presets": 3}, {"presets": {}}, {"presets": {"a": 1}}, 5):
            with pytest.raises(SettingError):
                NODES["FlowCacheChunkwiseReuse"].execute(
                    model=recorded[0].model, preset={"preset": "mini: slow"}, own_preset=value
                )


def reuse_options() -> Any:
    return next(one for one in NODES["FlowCacheChunkwiseReuse"].define_schema().inputs if one.id == "preset").options


class TestTheNode:
    def test_saved_presets_are_listed_with_their_lists(self, preset, folder):
        out = hold(preset=preset, save=True)
        option = next(one for one in reuse_options() if one.key == "my: mine")
        assert option.inputs[0].default == out.ui["lists"][0]
        assert json.loads((folder / "mine.json").read_text()) == preset

    def test_a_model_without_a_file_is_named_once(self, preset):
        text = hold(preset=preset).args[1]
        assert "recorded on wan, 24 wide, 2 layers" in text.split("\n") and text.count("24 wide") == 1

    def test_a_link_goes_first_and_hold_leaves_it_alone(self, preset):
        kind = NODES["FlowCachePreset"]
        held = hold(preset=preset, name="held").ui["lists"][0]
        assert kind.check_lazy_status(preset=None, hold=False, lists=held) == ["preset"]
        assert kind.check_lazy_status(preset=None, hold=True, lists="") == ["preset"]
        assert kind.check_lazy_status(preset=None, hold=True, lists=held) == []
        assert kind.check_lazy_status(hold=False, lists=held) == [], "nothing is linked"
        assert next(iter(hold(preset=preset, lists=held).args[0]["presets"])) == "mine"
        assert next(iter(hold(preset=None, hold=True, lists=held).args[0]["presets"])) == "held"

    def test_the_workflow_goes_before_a_file_of_the_same_name_and_says_so(self, recorded, preset, folder):
        case = recorded[0]
        lists = hold(preset=preset, save=True).ui["lists"][0]
        other = calibrate(recorded[1], recorded[2], {**SHARE, "share": 0.8})[0]
        hold(preset=other, save=True)
        model = model_with(case.model, {"preset": "my: mine", "lists": lists})
        out = sample(model, case.sampler, **case.options)[0]
        assert torch.equal(out, case.run(preset)[1])
        assert "your folder has another" in last_record(model).notes[0]

    def test_a_file_that_is_gone_stops_nothing_where_the_workflow_holds_it(self, preset):
        lists = hold(preset=preset).ui["lists"][0]
        kind = NODES["FlowCachePreset"]
        assert kind.validate_inputs(file="gone", lists=lists) is True
        assert kind.validate_inputs(file="gone", lists="").startswith("file: got gone, accepted: none")
        assert "gone is not in your folder" in hold(file="gone", lists=lists).args[1]
