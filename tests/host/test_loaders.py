"""Checkpoints as their authors publish them, and files that are none."""

from __future__ import annotations

import json
import pickle

import folder_paths
import pytest
import safetensors.torch
import torch
from hostkit import NODES, close, hosts, load, metadata, module, node, sample, state_dict
from torch.nn import functional

SettingError = module("flowcache_core.errors").SettingError
AUTO = {"family": "auto"}
SKYREELS = {"family": "skyreels-v2-df", "fps": "24"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """models/diffusion_models, with nothing in it."""
    place = ([str(tmp_path)], folder_paths.supported_pt_extensions)
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "diffusion_models", place)
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    folder_paths.filename_list_cache.clear()


@pytest.fixture(autouse=True)
def tiny_shape(monkeypatch):
    """Training checkpoints carry no metadata; a tiny one needs some for what the host takes as given."""
    checkpoints = module("nodes.adapters.files.checkpoints")
    tagged = checkpoints.tagged

    def with_shape(given, causal, sizes):
        return tagged({**given, **({} if "config" in given else metadata(causal=False))}, causal, sizes)

    monkeypatch.setattr(checkpoints, "tagged", with_shape)


def load_file(name, family=AUTO, weight_dtype="default", shift=5.0):
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    model = node("LoadARModel", model_name=name, weight_dtype=weight_dtype, family=family)
    return ModelSamplingSD3().patch(model, shift)[0]


def refused(message, **inputs):
    fields = {"weight_dtype": "default", "family": AUTO, **inputs}
    with pytest.raises(SettingError) as caught:
        node("LoadARModel", **fields)
    text = str(caught.value)
    assert text.startswith("Load AR Video Model, ") and all(part in text for part in message), text


def prefixed(prefix):
    return {prefix + key: value for key, value in state_dict().items()}


WRAPPINGS = {
    "plain": lambda: state_dict(),
    "self-forcing": lambda: {"generator": prefixed("model."), "critic": {"x": torch.zeros(1)}},
    "averaged weights win": lambda: {
        "generator": {f"model.{key}": torch.zeros_like(value) for key, value in state_dict().items()},
        "generator_ema": prefixed("model._fsdp_wrapped_module."),
    },
    "fsdp everywhere": lambda: {
        "model": {key.replace("blocks.0.", "blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module."): value
                  for key, value in prefixed("_fsdp_wrapped_module.").items()}
    },
    "compiled": lambda: prefixed("_orig_mod."),
    "host checkpoint": lambda: prefixed("model.diffusion_model."),
}  # fmt: skip


@pytest.mark.parametrize("name", WRAPPINGS)
def test_nested_checkpoints(folder, name):
    torch.save(WRAPPINGS[name](), folder / "raw.pt")
    model = load_file("raw.pt")
    assert type(model.model).__name__ == "WAN21_CausalAR"
    close(sample(model, hosts())[0], sample(load(), hosts())[0])


def test_safetensors_keeps_its_metadata(folder):
    safetensors.torch.save_file(state_dict(), folder / "m.safetensors", metadata=metadata(causal=False))
    model = load_file("m.safetensors", {"family": "causal wan"})
    close(sample(model)[0], sample(load())[0])
    assert model.model.diffusion_model.freq_dim == 16


def test_fp8(folder):
    safetensors.torch.save_file(state_dict(), folder / "m.safetensors", metadata=metadata())
    model = load_file("m.safetensors", weight_dtype="fp8_e4m3fn")
    assert model.model.get_dtype() == torch.float8_e4m3fn
    assert torch.isfinite(sample(model)[0]).all()
    half = {key: value.to(torch.float8_e4m3fn) for key, value in state_dict().items()}
    torch.save({"generator": half}, folder / "fp8.pt")
    close(sample(load_file("fp8.pt"))[0], sample(model)[0], 0.2)


class TestSkyReels:
    def weights(self, dim=24):
        generator = torch.Generator().manual_seed(9)
        draw = {
            "fps_embedding.weight": (2, dim),
            "fps_projection.0.weight": (dim, dim),
            "fps_projection.0.bias": (dim,),
            "fps_projection.2.weight": (6 * dim, dim),
            "fps_projection.2.bias": (6 * dim,),
        }
        return {key: torch.randn(shape, generator=generator) * 0.3 for key, shape in draw.items()}

    def test_frame_rate_is_kept_and_matters(self, folder):
        extra = self.weights()
        safetensors.torch.save_file(
            {**state_dict(), **extra}, folder / "sky.safetensors", metadata=metadata(causal=False)
        )
        outputs = {}
        for fps in ("24", "16"):
            model = load_file("sky.safetensors", {"family": "skyreels-v2-df", "fps": fps})
            assert type(model.model).__name__ == "WAN21"
            hidden = functional.silu(
                functional.linear(
                    extra["fps_embedding.weight"][int(fps == "24")],
                    extra["fps_projection.0.weight"],
                    extra["fps_projection.0.bias"],
                )
            )
            rate = functional.linear(hidden, extra["fps_projection.2.weight"], extra["fps_projection.2.bias"])
            weights = state_dict()
            weights["time_projection.1.bias"] += rate  # the same term, put where the host has a weight
            outputs[fps] = sample(model)[0]
            close(outputs[fps], sample(load(weights, causal=False))[0])
        assert not torch.allclose(outputs["24"], outputs["16"], atol=1e-2)
        close(sample(load_file("sky.safetensors"))[0], outputs["24"])
        # nothing of it stays in the weights that other models share
        assert "forward" not in vars(load(causal=False).model.diffusion_model.time_projection)

    def test_14b_has_no_frame_rate_and_is_taken_for_one_only_when_asked(self, folder):
        safetensors.torch.save_file(state_dict(), folder / "14b.safetensors", metadata=metadata(causal=False))
        chosen = load_file("14b.safetensors", {"family": "skyreels-v2-df", "fps": "24"})
        assert type(chosen.model).__name__ == "WAN21"
        assert not chosen.object_patches.keys() & {"diffusion_model.time_projection.forward"}
        close(sample(chosen)[0], sample(load(causal=False))[0])
        assert type(load_file("14b.safetensors").model).__name__ == "WAN21_CausalAR"

    @pytest.mark.parametrize(
        ("dim", "fps", "family", "message"),
        [
            (5120, True, AUTO, "a 14B model with fps_embedding.weight', accepted: SkyReels-V2-DF 14B, which has no"),
            (5120, True, SKYREELS, "a 14B model with fps_embedding.weight', accepted: SkyReels-V2-DF 14B, which has"),
            (1536, False, SKYREELS, "a 1.3B model without fps_embedding.weight', accepted: SkyReels-V2-DF 1.3B, which"),
        ],
    )
    def test_sizes_that_do_not_fit(self, folder, dim, fps, family, message):
        """Seen by one size and the names alone, before anything is built."""
        weights = {"head.modulation": torch.zeros(1, 2, dim), "patch_embedding.weight": torch.zeros(dim, 16, 1, 2, 2)}
        if fps:
            weights["fps_embedding.weight"] = torch.zeros(2, dim)
        safetensors.torch.save_file(weights, folder / "m.safetensors")
        refused(["model_name", message], model_name="m.safetensors", family=family)

    def test_families_that_do_not_fit(self, folder):
        safetensors.torch.save_file({**state_dict(), **self.weights()}, folder / "sky.safetensors", metadata=metadata())
        refused(["model_name", "frame-rate"], model_name="sky.safetensors", family={"family": "causal wan"})
        short = {key: value for key, value in self.weights().items() if "2.bias" not in key}
        safetensors.torch.save_file({**state_dict(), **short}, folder / "short.safetensors", metadata=metadata())
        refused(["model_name", "fps_projection.2.bias"], model_name="short.safetensors")


def official_folder(folder, weights, shards=3, **changes):
    """config.json and shards with their index, as SkyReels-V2 14B is published. Returns the name to choose."""
    place = folder / "SkyReels-V2-DF-14B-540P"
    place.mkdir()
    keys, places = list(weights), {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        safetensors.torch.save_file({key: weights[key] for key in keys[number::shards]}, place / name)
        places |= dict.fromkeys(keys[number::shards], name)
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    config = {"_class_name": "WanModel", "model_type": "t2v", "num_heads": 2, "num_layers": 2, "dim": 24, **changes}
    (place / "config.json").write_text(json.dumps(config))
    return f"{place.name}/model.safetensors.index.json"


class TestOfficialFolders:
    def test_shards_are_one_model(self, folder):
        name = official_folder(folder, state_dict())
        assert NODES["FlowCacheLoadARModel"].define_schema().inputs[0].options == [name]
        close(sample(load_file(name, SKYREELS))[0], sample(load(causal=False))[0])

    def test_one_file_and_its_config(self, folder):
        name = official_folder(folder, state_dict(), shards=1)
        place = (folder / name).parent
        (place / "model-00001-of-00001.safetensors").rename(place / "model.safetensors")
        folder_paths.filename_list_cache.clear()
        close(sample(load_file(f"{place.name}/model.safetensors", SKYREELS))[0], sample(load(causal=False))[0])

    def test_the_config_says_how_many_heads(self, folder):
        one = load_file(official_folder(folder, state_dict(), num_heads=1), SKYREELS)
        assert one.model.diffusion_model.num_heads == 1

    def test_missing_shards(self, folder):
        name = official_folder(folder, state_dict())
        (folder / name).with_name("model-00002-of-00003.safetensors").unlink()
        message = "1 of 3 shards missing: model-00002-of-00003.safetensors"
        refused(["model_name", message, "download the missing ones"], model_name=name)

    def test_half_a_shard(self, folder):
        name = official_folder(folder, state_dict())
        cut = (folder / name).with_name("model-00002-of-00003.safetensors")
        cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
        refused(["model_name", "model-00002-of-00003.safetensors", "unreadable"], model_name=name)

    def test_missing_index(self, folder):
        name = official_folder(folder, state_dict())
        (folder / name).unlink()
        refused(["model_name", "shards without model.safetensors.index.json"], model_name=name)

    def test_config_of_another_model(self, folder):
        name = official_folder(folder, state_dict(), num_layers=3)
        refused(["model_name", "num_layers: 3", "2, as in the weights"], model_name=name)

    def test_unreadable_config(self, folder):
        name = official_folder(folder, state_dict())
        (folder / name).with_name("config.json").write_text("{")
        refused(["model_name", "config.json", "unreadable"], model_name=name)


def scaled_fp8(weights):
    """The host's form, and what its weights stand for."""
    stored, meant = {}, dict(weights)
    for key, tensor in weights.items():
        if not key.startswith(("blocks.", "fps_projection.")) or tensor.ndim != 2:
            stored[key] = tensor
            continue
        scale, layer = tensor.abs().max() / 448, key.removesuffix(".weight")
        stored |= {key: (tensor / scale).to(torch.float8_e4m3fn), f"{layer}.scale_weight": scale}
        meant[key] = stored[key].float() * scale
    return stored, meant


class TestScaledFp8:
    """Weights that are nothing without their scales, as a 14B on a consumer card comes."""

    @pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
    def test_marker_and_scales(self, folder, prefix):
        stored, meant = scaled_fp8({**state_dict(), **TestSkyReels().weights()})
        stored["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
        named = {prefix + key: value for key, value in stored.items()}
        safetensors.torch.save_file(named, folder / "fp8.safetensors", metadata=metadata(causal=False))
        self.same(folder, meant)

    @pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
    def test_layers_listed_in_the_metadata(self, folder, prefix):
        stored, meant = scaled_fp8({**state_dict(), **TestSkyReels().weights()})
        named = {prefix + key.replace("scale_weight", "weight_scale"): value for key, value in stored.items()}
        how = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}
        layers = {key.removesuffix(".weight_scale"): how for key in named if key.endswith("weight_scale")}
        listed = {**metadata(causal=False), "_quantization_metadata": json.dumps({"layers": layers})}
        safetensors.torch.save_file(named, folder / "fp8.safetensors", metadata=listed)
        self.same(folder, meant)

    def same(self, folder, meant):
        safetensors.torch.save_file(meant, folder / "plain.safetensors", metadata=metadata(causal=False))
        with torch.inference_mode():  # as the host runs nodes; its quantised tensors cannot be moved otherwise
            low = load_file("fp8.safetensors")
            held = low.model.diffusion_model.state_dict()["blocks.0.ffn.0.weight"]
            assert held.dtype == torch.float8_e4m3fn
            close(sample(low)[0], sample(load_file("plain.safetensors"))[0], 1e-4)


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


class TestBadFiles:
    def test_truncated(self, folder):
        safetensors.torch.save_file(state_dict(), folder / "m.safetensors", metadata=metadata())
        torch.save(state_dict(), folder / "m.pt")
        for name in ("m.safetensors", "m.pt"):
            content = (folder / name).read_bytes()
            (folder / name).write_bytes(content[: len(content) // 2])
            refused(["model_name", name], model_name=name)

    @pytest.mark.parametrize("content", [b"", b"not a checkpoint", bytes(1000)])
    def test_noise(self, folder, content):
        for name in ("n.safetensors", "n.pt"):
            (folder / name).write_bytes(content)
            refused(["model_name", name], model_name=name)

    def test_pickle_that_runs_code(self, folder, capsys):
        torch.save({"generator": Evil()}, folder / "evil.pt")
        (folder / "evil.pth").write_bytes(pickle.dumps({"model": Evil()}))
        for name in ("evil.pt", "evil.pth"):
            refused(["model_name", name], model_name=name)
        assert "code ran" not in capsys.readouterr().out

    def test_another_architecture(self, folder):
        safetensors.torch.save_file({"unet.conv.weight": torch.zeros(2, 2)}, folder / "m.safetensors")
        refused(["model_name", "head.modulation", "Wan 2.1"], model_name="m.safetensors")
        other = state_dict()
        other["patch_embedding.weight"] = torch.zeros(24, 36, 1, 2, 2)
        safetensors.torch.save_file(other, folder / "i2v.safetensors", metadata=metadata())
        refused(["model_name", "36 input channels", "text-to-video"], model_name="i2v.safetensors")

    def test_weights_missing(self, folder):
        part = {key: value for key, value in state_dict().items() if "blocks.1.ffn" not in key}
        safetensors.torch.save_file(part, folder / "m.safetensors", metadata=metadata())
        refused(["model_name", "4 weights missing", "blocks.1.ffn"], model_name="m.safetensors")

    @pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "", "absent.safetensors", "a/../../b.pt"])
    def test_names_outside_the_folder(self, folder, name):
        (folder.parent / "secret.safetensors").write_bytes(b"")
        refused(["model_name"], model_name=name)

    def test_unknown_choices(self, folder):
        safetensors.torch.save_file(state_dict(), folder / "m.safetensors", metadata=metadata())
        refused(["weight_dtype"], model_name="m.safetensors", weight_dtype="int4")
        refused(["family"], model_name="m.safetensors", family={"family": "magi"})


def test_list_of_files_is_the_hosts(folder):
    (folder / "one.safetensors").write_bytes(b"")
    (folder / "two.pt").write_bytes(b"")
    (folder / "readme.txt").write_bytes(b"")
    options = NODES["FlowCacheLoadARModel"].define_schema().inputs[0].options
    assert options == ["one.safetensors", "two.pt"]
