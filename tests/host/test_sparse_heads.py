"""Heads of the user's own model, measured in the graph: a preset that Sparse Attention takes, and that travels."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import folder_paths
import numpy as np
import pytest
import tiny_magi
import torch
from hostkit import BLOCKWISE, NODES, STAGGERED, hosts, latent, load, module, node, ours, prompt, sample, sigmas_of
from safetensors.torch import save_file

SettingError = module("flowcache_core.errors").SettingError
head_samples = module("flowcache_core.calibrate.head_samples")
settings = module("nodes.adapters.run.settings")
HeadTable = module("flowcache_core.sparse.head_table").HeadTable
parse_sparse_row = module("flowcache_core.presets.sparse").parse_sparse_row
BASE = {"dense_chunks": 1, "dense_steps": 0, "engine": "auto", "mask_reuse": False}
MEASURE = {"preset": "measure heads", "block": 8, "stride": 4, "samples": 2, "shares": "0.3, 0.7"}
HEADS = {"target": "attention heads", "density": 0.6}
LONG = 57  # 15 latent frames


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path / "user"))
    return tmp_path / "user" / "default" / "flowcache"


def sparse(model: Any, preset: dict[str, Any], **fields: Any) -> Any:
    return node("SparseAttention", model=model, preset=preset, **{**BASE, **fields})


def calibrate(model: Any, latents: Any = None, target: Any = HEADS, name: str = "mine") -> Any:
    """(preset, text, picture)."""
    kind = type(
        "InAGraph", (NODES["FlowCacheCalibrate"],), {"hidden": SimpleNamespace(prompt=None, extra_pnginfo=None)}
    )
    given = {} if latents is None else {"latent": {"samples": latents}}
    return kind.execute(model=model, target=target, name=name, **given).args


def hold(**inputs: Any) -> Any:
    values = {"hold": False, "file": "none", "lists": "", "name": "", "save": False, **inputs}
    return NODES["FlowCachePreset"].execute(**values)


class Case:
    def __init__(self, model: Any, plan: dict[str, Any], **options: Any) -> None:
        self.model, self.plan, self.options = model, plan, options

    def sample(self, model: Any, **more: Any) -> torch.Tensor:
        return sample(model, ours(self.plan), **{**self.options, **more})[0]


def mini() -> Case:
    texts = {"positive": node("MiniPrompt", text="a red circle moving right"), "negative": node("MiniPrompt", text="")}
    model = NODES["FlowCacheMiniModel"].execute().args[0]
    options = {"start": latent(LONG, width=64, height=64), "sigmas": sigmas_of(model, 4)}
    return Case(model, {**BLOCKWISE, "solver": "euler"}, **options, **texts)


def skyreels() -> Case:
    model = load(causal=False)
    options = {"start": latent(LONG), "sigmas": sigmas_of(model, 4), "negative": prompt(8), "cfg": 3.0}
    return Case(model, STAGGERED, **options)


def magi() -> Case:
    variant = {"variant": "base", "text_scale": 7.5, "previous_scale": 1.5, "kv_ranges": ""}
    model = node("LoadMagiModel", model_name="tiny_magi.safetensors", weight_dtype="default", variant=variant)
    plan = {"plan": "sliding window", "chunk_frames": 2, "window_chunks": 4, "solver": "euler", "clean_pass": True}
    text = [[torch.randn(1, 5, tiny_magi.TEXT_DIM, generator=torch.Generator().manual_seed(5)), {}]]
    start = {"samples": torch.zeros(1, 16, 8, 8, 8)}
    sigmas = node("MagiSchedule", steps="16", shortcut_mode="8,16,16")
    return Case(model, plan, positive=text, start=start, sigmas=sigmas)


CASES = {"mini": mini, "tiny SkyReels": skyreels, "tiny MAGI": magi}


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


@pytest.mark.parametrize("kind", CASES)
def test_measured_calibrated_held_and_used(kind, magi_file, folder, tmp_path, monkeypatch):
    case = CASES[kind]()
    plain = case.sample(case.model)
    measuring = sparse(case.model, MEASURE)
    assert torch.equal(case.sample(measuring), plain), "measuring changes the run"
    preset, text, picture = calibrate(measuring, plain)
    assert "p per head by measured error" in text and "note" not in text
    assert picture.shape[0] == 1 and float(picture.std()) > 0.02
    row = preset["sparse"]["mine"]
    table = HeadTable.from_row(row["table"])
    assert table.subject.candidates == (0.3, 0.7, 1.0) and len(row["evidence"]["samples"]) == 2
    errors = np.array(table.error)
    assert (errors[:, :2].max(1) > 0).any() and (errors[:, 2] == 0).all()

    linked = node("SparseAttention", model=case.model, preset=MEASURE, own_preset=preset, **BASE)
    thin = case.sample(linked)
    assert not torch.equal(thin, plain) and settings.last_record(linked).attention_density < 0.95
    held = hold(preset=preset, name="my heads", save=True)
    assert [path.name for path in (folder / "heads").iterdir()] == ["my heads.json"]
    assert torch.equal(case.sample(sparse(case.model, {"preset": "my: my heads", "density": 0.6})), thin)
    assert not torch.equal(case.sample(sparse(case.model, {"preset": "my: my heads", "density": 0.8})), thin)
    lists = json.loads(json.dumps(held.ui["lists"][0]))
    # Another machine: no file there, only what the workflow holds.
    monkeypatch.setattr(folder_paths, "user_directory", str(tmp_path / "elsewhere"))
    other = {"preset": "held in this workflow", "density": 0.6, "lists": lists}
    assert torch.equal(case.sample(sparse(case.model, other)), thin)
    again = hold(lists=lists, file="heads: my heads")
    assert "this workflow" in again.args[1] and "heads of" in again.args[1]
    patched = node("SparseAttention", model=case.model, preset=MEASURE, own_preset=again.args[0], **BASE)
    assert torch.equal(case.sample(patched), thin)
    by_hand = {"model": case.model, "preset": "my: my heads", "preset.lists": lists, "preset.density": 0.6, **BASE}
    assert torch.equal(case.sample(NODES["FlowCacheSparseAttention"].execute(**by_hand).args[0]), thin)


def test_a_stopped_run_goes_on_and_other_seeds_add_up(monkeypatch, folder):
    case, original, calls = skyreels(), head_samples.relative_error, []

    def counted(velocity: Any, dense: Any) -> float:
        calls.append(1)
        if len(calls) == 6:
            raise comfy.model_management.InterruptProcessingException
        return original(velocity, dense)

    monkeypatch.setattr(head_samples, "relative_error", counted)
    measuring = sparse(case.model, MEASURE)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        case.sample(measuring)
    with pytest.raises(SettingError, match="FlowCache Calibrate, model: got '?5 of 16 measured, no step complete"):
        calibrate(measuring)
    (file,) = (folder / "measured").iterdir()
    assert file.name.endswith(".heads.json")
    measuring = sparse(case.model, MEASURE)
    case.sample(measuring)
    assert len(calls) == 6 + 16 - 5
    first = calibrate(measuring)[0]["sparse"]["mine"]
    case.sample(measuring, seed=2)
    assert len(calls) == 6 + 16 - 5 + 16
    both = calibrate(measuring)[0]["sparse"]["mine"]
    assert len(both["evidence"]["samples"]) == 4 and "2 videos" in both["text"]
    assert both["table"]["error"] != first["table"]["error"]
    case.sample(measuring, positive=prompt(3))  # another prompt is another video
    assert len(calls) == 6 + 16 - 5 + 32
    case.sample(measuring, sigmas=sigmas_of(case.model, 5))  # another schedule is another table
    assert len(list((folder / "measured").iterdir())) == 2


def test_what_remembers_from_call_to_call_remembers_the_dense_run(folder):
    """A guidance node with a running average: the errors are of heads, and the run is as without measuring."""
    case = skyreels()

    def averaging() -> Any:
        mean: Any = None

        def post(args: Any) -> Any:
            nonlocal mean
            mean = args["denoised"] if mean is None else 0.5 * mean + 0.5 * args["denoised"]
            return mean

        model = case.model.clone()
        model.set_model_sampler_post_cfg_function(post)
        return model

    plain = case.sample(averaging())
    measuring = sparse(averaging(), {**MEASURE, "shares": "0.9999"})
    assert torch.equal(case.sample(measuring), plain)
    # All but everything is kept: an error that the average alone makes would be large.
    whole = calibrate(measuring, target={**HEADS, "density": 1.0})[0]
    errors = np.array(whole["sparse"]["mine"]["table"]["error"])
    assert errors.max() < 1e-3


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(folder_paths, "user_directory", str(tmp_path_factory.mktemp("user")))
    case = skyreels()
    measuring = sparse(case.model, MEASURE)
    out = case.sample(measuring)
    yield case, measuring, out, calibrate(measuring, out)[0]
    patch.undo()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"block": 128, "stride": 16}, "block: 128, accepted: at most the 16 tokens"),
        ({"stride": 3}, "stride"),
        ({"shares": "0.7, 0.3"}, "shares"),
        ({"shares": "0.5, 1.5"}, "shares"),
        ({"shares": "1"}, "shares"),
        ({"shares": "many"}, "shares"),
        ({"samples": 0}, "samples"),
    ],
)
def test_what_cannot_be_measured_names_the_field(measured, change, said):
    case = measured[0]
    with pytest.raises(SettingError) as error:
        case.sample(sparse(case.model, {**MEASURE, **change}))
    assert f"FlowCache Sparse Attention, {said}" in str(error.value).replace("got ", "")


def test_nothing_sparse_to_measure(measured):
    case = measured[0]
    with pytest.raises(SettingError, match="FlowCache Sparse Attention, dense_chunks: got 8, accepted: less than"):
        case.sample(sparse(case.model, MEASURE, dense_chunks=8))
    plan = {**STAGGERED, "attention": "bidirectional"}
    with pytest.raises(SettingError, match="FlowCache Sparse Attention, attention"):
        sample(sparse(case.model, MEASURE), ours(plan), **case.options)
    with pytest.raises(SettingError, match="FlowCache Sparse Attention"):
        sample(sparse(load(), MEASURE), hosts())
    with pytest.raises(SettingError, match="already has FlowCache Sparse Attention"):
        sparse(sparse(case.model, MEASURE), MEASURE)


def test_calibrating_what_was_not_measured(measured):
    case = measured[0]
    plain = sparse(case.model, {"preset": "xattention", "p": 0.6, "block": 8, "stride": 4})
    out = case.sample(plain)
    for latents in (out, None):
        with pytest.raises(SettingError, match="FlowCache Calibrate, model: got 'No heads were measured"):
            calibrate(plain, latents)
    with pytest.raises(SettingError, match="density"):
        calibrate(measured[1], measured[2], {**HEADS, "density": 0.01})


def test_heads_of_another_model(measured):
    case, _, _, preset = measured
    thick = load(module_state(3), causal=False)
    with pytest.raises(SettingError, match="FlowCache Sparse Attention, preset mine: got 'a model wan, 24 wide, 3 lay"):
        node("SparseAttention", model=thick, preset=MEASURE, own_preset=preset, **BASE)
    bare = json.loads(json.dumps(preset))
    del bare["sparse"]["mine"]["evidence"]["architecture"]
    with pytest.raises(SettingError, match="FlowCache Sparse Attention, table: .*3 layers of 2 heads"):
        node("SparseAttention", model=thick, preset=MEASURE, own_preset=bare, **BASE)
    other = load(causal=False)
    other.cached_patcher_init = (load, ("/somewhere/finetune.safetensors",))
    patched = node("SparseAttention", model=other, preset=MEASURE, own_preset=preset, **BASE)
    case.sample(patched)
    assert any("and this is finetune.safetensors" in note for note in settings.last_record(patched).notes)


@pytest.mark.parametrize("kind", ["scenes", "magi"])
def test_shipped_heads_of_another_bundled_model(kind):
    """All three have as many layers and heads, and two the same sizes."""
    model = NODES["FlowCacheMiniModel"].execute(model=kind).args[0]
    with pytest.raises(SettingError, match="Sparse Attention, preset: got 'a model from .*bundled model mini"):
        sparse(model, {"preset": "mini: per-head", "density": 0.5})
    node("SparseAttention", model=mini().model, preset={"preset": "mini: per-head", "density": 0.5}, **BASE)


def module_state(layers: int) -> Any:
    from hostkit import state_dict

    return state_dict(layers=layers)


STEPS = {"schema": 1, "presets": {"steps": {"text": "x", "policy": {"name": "schedule", "computed": [0, 3]}}}}


def test_a_preset_of_the_other_kind_and_damaged_ones(measured, folder):
    case, _, _, preset = measured
    with pytest.raises(SettingError, match="Sparse Attention, preset: sparse: .*steps, for FlowCache Chunkwis"):
        node("SparseAttention", model=case.model, preset=MEASURE, own_preset=STEPS, **BASE)
    lists = json.dumps(preset)
    with pytest.raises(SettingError, match="FlowCache Chunkwise Reuse.*attention heads"):
        node("ChunkwiseReuse", model=case.model, preset={"preset": "held in this workflow", "lists": lists})
    with pytest.raises(SettingError, match="FlowCache Chunkwise Reuse"):
        node("ChunkwiseReuse", model=case.model, preset={"preset": "mini: slow"}, own_preset=preset)
    for text, said in (
        ("", "lists: got 'nothing'"),
        ("{", "lists"),
        (lists.replace('"density": 0.6', '"density": 7'), "density"),
        (lists.replace('"stride": 4', '"stride": 3'), "stride"),
        (lists.replace('"layers": 2', '"layers": 20'), "error"),
    ):
        with pytest.raises(SettingError) as error:
            sparse(case.model, {"preset": "held in this workflow", "density": 0.6, "lists": text})
        assert "FlowCache Sparse Attention, " in str(error.value) and said in str(error.value)
    with pytest.raises(SettingError, match="FlowCache Sparse Attention, preset: got 'not there'"):
        sparse(case.model, {"preset": "my: not there", "density": 0.6})


def test_the_node_says_before_the_run_what_it_takes(measured):
    case = measured[0]
    shown = NODES["FlowCacheSparseAttention"].execute(model=case.model, preset=MEASURE, **BASE).ui.as_dict()["text"][0]
    assert "2 layers of 2 heads" in shown and "16 more forwards" in shown
    notes = settings.last_record(measured[1]).notes
    assert any(note.startswith("heads are measured at 2 steps: 16 more forwards") for note in notes)
