"""What lies in models folders and is no model for us: the loaders say what it is and what to do, within seconds."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import folder_paths
import pytest
import safetensors.torch
import tiny_magi
import torch
from hostkit import metadata, module, node, state_dict

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from mutants import archive_changed, bytes_changed, json_changed, odd_contents, pickled, safetensors_changed  # noqa: E402

SettingError = module("flowcache_core.errors").SettingError
AUTO = {"family": "auto"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """models/diffusion_models and models/vae, with nothing in them, where every file is listed."""
    for name in ("diffusion_models", "vae", "text_encoders"):
        (tmp_path / name).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path / name)], set()))
    folder_paths.filename_list_cache.clear()
    yield tmp_path / "diffusion_models"
    folder_paths.filename_list_cache.clear()


def load(name):
    return node("LoadARModel", model_name=name, weight_dtype="default", family=AUTO)


def load_magi(name):
    return node("LoadMagiModel", model_name=name, weight_dtype="default", variant={"variant": "auto"})


def lora():
    down, up = torch.zeros(4, 24), torch.zeros(24, 4)
    return {f"diffusion_model.blocks.0.self_attn.q.lora_{part}.weight": value for part, value in
            (("A", down), ("B", up))}  # fmt: skip


def diffusers():
    return {"patch_embedding.weight": torch.zeros(24, 16, 1, 2, 2), "blocks.0.attn1.to_q.weight": torch.zeros(24, 24),
            "condition_embedder.time_embedder.linear_1.weight": torch.zeros(24, 16),
            "scale_shift_table": torch.zeros(1, 2, 24)}  # fmt: skip


def vace():
    return {**state_dict(), "vace_blocks.0.before_proj.weight": torch.zeros(24, 24),
            "vace_patch_embedding.weight": torch.zeros(24, 96, 1, 2, 2)}  # fmt: skip


def beside(*names):
    """A Wan model with modules of another project in a block, or beside the blocks."""
    return lambda: {**state_dict(), **{name: torch.zeros(24) for name in names}}


LINGBOT = (
    *(f"{name}.weight" for name in ("patch_embedding_wancamctrl", "c2ws_hidden_states_layer1")),
    *(f"blocks.1.cam_{name}.bias" for name in ("injector_layer1", "injector_layer2", "scale_layer", "shift_layer")),
)
FOUR_OVER_SIX = [f"blocks.0.ffn.0.quantized_weight_{name}" for name in ("values", "scale_factors", "amax", "metadata")]


def trained(make):
    """As a trainer with FSDP saves it."""
    return lambda: {f"model._fsdp_wrapped_module.{key}": value for key, value in make().items()}


LINEARS = [f"{kind}_attn.{name}" for kind in ("self", "cross") for name in "qkvo"]
MEMFLOW = {
    # Every parameter of KlingTeam/MemFlow (7ed51477), wan/modules/causal_model.py, two blocks of it.
    *("patch_embedding.weight", "patch_embedding.bias", "head.modulation", "head.head.weight", "head.head.bias"),
    *(f"{name}.{part}" for name in ("text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2",
      "time_projection.1") for part in ("weight", "bias")),
    *(f"blocks.{block}.{name}.{part}" for block in range(2) for name in (*LINEARS, "norm3", "ffn.0", "ffn.2")
      for part in ("weight", "bias")),
    *(f"blocks.{block}.{kind}_attn.norm_{name}.weight" for block in range(2) for kind in ("self", "cross")
      for name in "qk"),
    *(f"blocks.{block}.modulation" for block in range(2)),
}  # fmt: skip


def test_a_file_of_memflow_has_nothing_beside_wans_weights():
    """So no loader can tell it, as docs/models.md says."""
    assert set(state_dict()) == MEMFLOW


KINDS = {
    "LingBot-World": (beside(*LINGBOT), "LingBot-World.*its own project"),
    "LingBot-World of a trainer": (trained(beside(*LINGBOT)), "LingBot-World"),
    "Matrix-Game 2": (beside("blocks.0.action_model.mouse_mlp.0.weight"), "Matrix-Game.*LightX2V"),
    "Matrix-Game 3": (beside(*LINGBOT, "blocks.0.action_model.proj_mouse.weight"), "Matrix-Game.*LightX2V"),
    "DreamX-World": (beside("blocks.0.cam_self_attn.q_proj.weight"), "DreamX-World.*FastVideo"),
    "LongLive's NVFP4": (beside(*FOUR_OVER_SIX), "FourOverSix.*model_bf16.pt"),
    "LongLive's other NVFP4": (trained(beside("blocks.0.ffn.0._extra_state")), "Transformer Engine.*model_bf16.pt"),
    "a LoRA": (lora, "a LoRA"),
    "a LoRA of LongLive": (lambda: {f"base_model.model.{key}": value for key, value in lora().items()}, "a LoRA"),
    "an old LoRA": (lambda: {"lora_unet_blocks_0_self_attn_q.lora_down.weight": torch.zeros(4, 24)}, "a LoRA"),
    "diffusers": (diffusers, "layout of diffusers"),
    "VACE": (vace, "a VACE model"),
    "image to video": (lambda: {**state_dict(), "img_emb.proj.0.bias": torch.zeros(24)}, "image-to-video"),
    "MAGI-1": (tiny_magi.weights, "MAGI-1"),
    "a VAE": (lambda: {"decoder.upsamples.0.residual.0.gamma": torch.zeros(4)}, "VAE"),
    "a text encoder": (lambda: {"token_embedding.weight": torch.zeros(4, 4)}, "text encoder"),
    "nothing": (lambda: {}, "no head.modulation|empty"),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_kinds_of_files(folder, name, suffix):
    make, named = KINDS[name]
    path = folder / f"m{suffix}"
    if suffix == ".pt":
        torch.save(make(), path)
    else:
        safetensors.torch.save_file({key: value.contiguous() for key, value in make().items()}, path)
    with pytest.raises(SettingError, match=named) as caught:
        load(path.name)
    assert str(caught.value).startswith("Load AR Video Model, model_name: got ")


BYTES = {
    "m.gguf": (b"GGUF\x03\x00\x00\x00" + bytes(100), "packed weights"),
    "m.pt": (b"<!DOCTYPE html><html></html>", "web page"),
    "m.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS"),
}


@pytest.mark.parametrize("name", BYTES)
def test_files_that_are_something_else(folder, name):
    content, named = BYTES[name]
    (folder / name).write_bytes(content)
    for loader in (load, load_magi):
        with pytest.raises(SettingError, match=named) as caught:
            loader(name)
        assert "weights_only" not in str(caught.value)


def test_a_pickle_with_other_objects_says_which(folder):
    torch.save({"model": state_dict(), "args": argparse.Namespace(lr=1)}, folder / "m.pt")
    with pytest.raises(SettingError) as caught:
        load("m.pt")
    text = str(caught.value)
    assert "argparse.Namespace" in text and "torch.save(model.state_dict()" in text
    assert text.isprintable() and "\x1b" not in text and "weights_only" not in text


def test_a_checkpoint_that_contains_itself(folder):
    content = {"state_dict": {}}
    content["state_dict"]["model"] = content
    torch.save(content, folder / "m.pt")
    for loader in (load, load_magi):
        with pytest.raises(SettingError, match="nested"):
            loader("m.pt")


MUTANTS = 60


def outcome(loader, what, refused):
    """What is wrong with how a damaged file is met."""
    begun = time.process_time()
    try:
        loader()
    except SettingError as error:
        refused.append(what)
        return None if len(str(error)) < 1500 and str(error).isprintable() else f"{what}: {error}"
    except Exception as error:
        return f"{what}: {type(error).__name__}: {error}"
    return None if time.process_time() - begun < 10 else f"{what}: {time.process_time() - begun:.0f} s"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_damaged_models(folder, suffix):
    path = folder / f"m{suffix}"
    weights = {**state_dict(), "blocks.0.ffn.0.bias": state_dict()["blocks.0.ffn.0.bias"]}
    if suffix == ".pt":
        path.write_bytes(pickled({"generator": weights}))
    else:
        safetensors.torch.save_file(weights, path, metadata=metadata())
    original, wrong, refused = path.read_bytes(), [], []
    for number in range(MUTANTS):
        draw = random.Random(f"host {suffix} {number}")
        change = draw.choice((bytes_changed, archive_changed if suffix == ".pt" else safetensors_changed))
        path.write_bytes(change(original, draw))
        wrong.append(outcome(lambda: load(path.name), f"mutant {number}", refused))
    wrong = [line for line in wrong if line]
    assert not wrong, "\n".join(wrong)
    assert len(refused) > MUTANTS // 4


def test_other_things_saved_with_torch(folder):
    wrong = []
    for what, content in odd_contents(state_dict()).items():
        try:
            (folder / "m.pt").write_bytes(pickled(content))
        except Exception:
            continue
        refused = []
        wrong.append(outcome(lambda: load("m.pt"), what, refused))
        if not refused and what not in ("transposed", "parameter", "nested twice", "float64"):
            wrong.append(f"{what}: read")
        wrong.append(outcome(lambda: load_magi("m.pt"), f"{what} as MAGI", refused))
    wrong = [line for line in wrong if line]
    assert not wrong, "\n".join(wrong)


def test_damaged_folders_and_tables(folder):
    vae = folder.parent / "vae" / "magi"
    tiny_magi.write_vae(vae)
    tiny_magi.write_sharded(folder / "magi", tiny_magi.weights())
    tiny_magi.write_table(folder.parent / "text_encoders" / "special_tokens.npz", dim=4096)
    names = {
        folder / "magi" / "model.safetensors.index.json": (
            json_changed, lambda: load_magi("magi/model.safetensors.index.json")),
        vae / "config.json": (
            json_changed, lambda: node("LoadMagiVAE", vae_name="magi/diffusion_pytorch_model.safetensors")),
        folder.parent / "text_encoders" / "special_tokens.npz": (
            archive_changed, lambda: module("nodes.adapters.magi.text").read_table("text_encoders/special_tokens.npz")),
    }  # fmt: skip
    wrong = []
    for path, (change, loader) in names.items():
        original = path.read_bytes()
        loader()
        for number in range(MUTANTS // 2):
            path.write_bytes(change(original, random.Random(f"{path.name} {number}")))
            wrong.append(outcome(loader, f"{path.name} {number}", []))
        path.write_bytes(original)
    wrong = [line for line in wrong if line]
    assert not wrong, "\n".join(wrong)


def test_metadata_of_another_form(folder):
    wrong, refused = [], []
    for text in ("3", "[]", "{", '{"transformer": 3}', '{"transformer": {"num_heads": "x"}}', "[" * 10_000,
                 json.dumps({"transformer": {"num_heads": 2, "x" * 10_000: 1}}), '{"transformer": {"num_layers": 1e9}}',
                 '{"transformer": {"image_model": "flux", "num_heads": 2}}'):  # fmt: skip
        for key in ("config", "_quantization_metadata"):
            safetensors.torch.save_file(state_dict(), folder / "m.safetensors", metadata={**metadata(), key: text})
            wrong.append(outcome(lambda: load("m.safetensors"), f"{key} {text[:40]}", refused))
    assert not [line for line in wrong if line], "\n".join(line for line in wrong if line)
    assert len(refused) >= 15


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("fps_embedding.weight", torch.tensor(1.0)),
        ("fps_embedding.weight", torch.zeros(0, 24)),
        ("fps_embedding.weight", torch.zeros(1, 24)),
        ("fps_projection.0.weight", torch.zeros(24)),
        ("fps_projection.2.bias", torch.zeros(7)),
        ("fps_projection.0.bias", torch.zeros(24, dtype=torch.int64)),
        ("patch_embedding.weight", torch.tensor(1.0)),
        ("head.head.weight", torch.zeros(0)),
        ("blocks.0.modulation", torch.zeros(0, 6, 24)),
    ],
)
def test_tensors_of_another_shape_are_named(folder, key, value):
    rate = {"fps_embedding.weight": (2, 24), "fps_projection.0.weight": (24, 24), "fps_projection.0.bias": (24,),
            "fps_projection.2.weight": (144, 24), "fps_projection.2.bias": (144,)}  # fmt: skip
    weights = {**state_dict(), **{name: torch.zeros(shape) for name, shape in rate.items()}, key: value}
    safetensors.torch.save_file(weights, folder / "m.safetensors", metadata=metadata(causal=False))
    with pytest.raises(SettingError, match=f"{key}|input channels"):
        load("m.safetensors")
