"""SkyReels-V2 weights: every published form gives the same model; the full-size tables; what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flowcache_core.errors import SettingError
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.skyreels_checkpoint import load_skyreels
from flowcache_core.models.wan.transformer import WanTransformer

SKYREELS_1B = WanConfig(dim=1536, ffn_dim=8960, num_layers=30, num_heads=12, fps_embedding=True)
SKYREELS_14B = WanConfig(dim=5120, ffn_dim=13824, num_layers=40, num_heads=40)
# The 1.3B scaled down: every official key, two blocks
TINY = replace(SKYREELS_1B, dim=24, ffn_dim=40, num_layers=2, num_heads=2, text_dim=20, freq_dim=16)


def official_shapes(c: WanConfig) -> dict[str, tuple[int, ...]]:
    """The published key set, from its description rather than from our module."""
    d, table = c.dim, {}

    def linear(name: str, out: int, inside: int) -> None:
        table[f"{name}.weight"], table[f"{name}.bias"] = (out, inside), (out,)

    table["patch_embedding.weight"], table["patch_embedding.bias"] = (d, 16, 1, 2, 2), (d,)
    linear("text_embedding.0", d, c.text_dim)
    linear("text_embedding.2", d, d)
    linear("time_embedding.0", d, c.freq_dim)
    linear("time_embedding.2", d, d)
    linear("time_projection.1", 6 * d, d)
    if c.fps_embedding:
        table["fps_embedding.weight"] = (2, d)
        linear("fps_projection.0", d, d)
        linear("fps_projection.2", 6 * d, d)
    for i in range(c.num_layers):
        table[f"blocks.{i}.modulation"] = (1, 6, d)
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                linear(f"blocks.{i}.{attention}.{part}", d, d)
            for norm in ("norm_q", "norm_k"):
                table[f"blocks.{i}.{attention}.{norm}.weight"] = (d,)
        table[f"blocks.{i}.norm3.weight"] = table[f"blocks.{i}.norm3.bias"] = (d,)
        linear(f"blocks.{i}.ffn.0", c.ffn_dim, d)
        linear(f"blocks.{i}.ffn.2", d, c.ffn_dim)
    table["head.modulation"] = (1, 2, d)
    linear("head.head", 64, d)
    return table


def random_weights(config: WanConfig, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {key: 0.1 * torch.randn(shape, generator=draw) for key, shape in official_shapes(config).items()}


def official_json(config: WanConfig, **changes: object) -> str:
    """As the model's own config.json reads."""
    values = {
        "_class_name": "WanModel", "_diffusers_version": "0.31.0", "model_type": "t2v", "text_len": 512, "eps": 1e-6,
        "dim": config.dim, "ffn_dim": config.ffn_dim, "freq_dim": config.freq_dim, "in_dim": 16, "out_dim": 16,
        "num_heads": config.num_heads, "num_layers": config.num_layers, "inject_sample_info": config.fps_embedding,
    }  # fmt: skip
    return json.dumps(values | changes)


def folder(path: Path, tensors: dict[str, Tensor], config: str | None = None) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(config or official_json(TINY))
    return path


def shards(path: Path, tensors: dict[str, Tensor], count: int = 3) -> Path:
    path.mkdir()
    keys, places = list(tensors), {}
    for number in range(count):
        name = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = {key: tensors[key] for key in keys[number::count]}
        save_file(part, path / name)
        places |= dict.fromkeys(part, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (path / "config.json").write_text(official_json(TINY))
    return path


def single(path: Path, tensors: dict[str, Tensor], prefix: str = "") -> Path:
    metadata = {"config": json.dumps({"transformer": {"num_heads": TINY.num_heads}})}
    save_file({prefix + key: tensor for key, tensor in tensors.items()}, path, metadata)
    return path


def quantised(
    tensors: dict[str, Tensor], scale_name: str = "scale_weight"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The host's scaled fp8 form, and what its weights stand for."""
    stored, meant = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, dict(tensors)
    for key, tensor in tensors.items():
        if not (key.startswith("blocks.") and key.endswith("weight") and tensor.dim() == 2):
            stored[key] = tensor
            continue
        scale = tensor.abs().max() / 448
        low = (tensor / scale).to(torch.float8_e4m3fn)
        layer = key.removesuffix(".weight")
        stored |= {key: low, f"{layer}.{scale_name}": scale, f"{layer}.scale_input": torch.tensor(1.0)}
        meant[key] = low.float() * scale
    return stored, meant


def assert_holds(model: WanTransformer, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    held = model.state_dict()
    assert set(held) == set(tensors)
    for key, tensor in tensors.items():
        assert held[key].dtype == dtype and torch.equal(held[key], tensor.to(dtype)), key


@pytest.mark.parametrize(
    ("config", "parameters"), [(SKYREELS_1B, 1.4355e9), (SKYREELS_14B, 14.29e9)], ids=["1.3B", "14B"]
)
def test_full_size_keys_and_shapes(config, parameters):
    with torch.device("meta"):
        model = WanTransformer(config)
    expected = official_shapes(config)
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == expected
    count = sum(math.prod(shape) for shape in expected.values())
    assert count == sum(p.numel() for p in model.parameters())
    assert count == pytest.approx(parameters, rel=1e-3)


def test_every_form_gives_the_same_model(tmp_path):
    tensors = random_weights(TINY)
    forms = [
        folder(tmp_path / "folder", tensors),
        shards(tmp_path / "shards", tensors),
        tmp_path / "shards" / "model.safetensors.index.json",
        single(tmp_path / "single.safetensors", tensors),
        single(tmp_path / "host.safetensors", tensors, "model.diffusion_model."),
    ]
    for form in forms:
        model = load_skyreels(form)
        assert model.config == TINY
        assert_holds(model, tensors)


@pytest.mark.parametrize("scale_name", ["scale_weight", "weight_scale"])
def test_scaled_fp8_is_multiplied_out(tmp_path, scale_name):
    stored, meant = quantised(random_weights(TINY), scale_name)
    file = single(tmp_path / "fp8.safetensors", stored, "model.diffusion_model.")
    assert_holds(load_skyreels(file, torch.float32), meant)
    model = load_skyreels(file)
    assert model.dtype == torch.bfloat16 and model.config == TINY


def test_fp8_without_scales_is_a_cast(tmp_path):
    tensors = {key: tensor.to(torch.float8_e4m3fn) for key, tensor in random_weights(TINY).items()}
    model = load_skyreels(single(tmp_path / "plain.safetensors", tensors), torch.float32)
    assert_holds(model, {key: tensor.float() for key, tensor in tensors.items()})


def test_one_scale_per_row(tmp_path):
    stored, meant = quantised(random_weights(TINY))
    rows = torch.arange(1.0, 25).reshape(24, 1)
    stored["blocks.0.self_attn.q.scale_weight"] = rows
    meant["blocks.0.self_attn.q.weight"] = stored["blocks.0.self_attn.q.weight"].float() * rows
    assert_holds(load_skyreels(single(tmp_path / "rows.safetensors", stored), torch.float32), meant)


def test_a_scale_that_is_missing_or_misshapen_is_named(tmp_path):
    stored, _ = quantised(random_weights(TINY))
    gone = {key: tensor for key, tensor in stored.items() if key != "blocks.1.ffn.0.scale_weight"}
    with pytest.raises(SettingError, match=r"blocks\.1\.ffn\.0\.weight: got 'fp8 without a scale'"):
        load_skyreels(single(tmp_path / "gone.safetensors", gone))
    stored["blocks.1.ffn.0.scale_weight"] = torch.ones(3)
    with pytest.raises(SettingError, match=r"blocks\.1\.ffn\.0\.scale_weight: got \(3,\)"):
        load_skyreels(single(tmp_path / "wrong.safetensors", stored))


def test_missing_shards_are_named(tmp_path):
    path = shards(tmp_path / "shards", random_weights(TINY))
    (path / "model-00002-of-00003.safetensors").unlink()
    (path / "model-00003-of-00003.safetensors").unlink()
    with pytest.raises(SettingError) as refused:
        load_skyreels(path)
    missing = "2 of 3 shards missing: model-00002-of-00003.safetensors, model-00003-of-00003.safetensors"
    assert missing in str(refused.value)


def test_half_a_shard_is_named(tmp_path):
    path = shards(tmp_path / "shards", random_weights(TINY))
    cut = path / "model-00002-of-00003.safetensors"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    with pytest.raises(SettingError, match="checkpoint model-00002-of-00003.safetensors: got 'unreadable"):
        load_skyreels(path)


@pytest.mark.parametrize(("dim", "fps", "message"), [
    (5120, True, "got 'a 14B model with fps_embedding.weight', accepted: SkyReels-V2-DF 14B, which has no frame-rate"),
    (1536, False, "got 'a 1.3B model without fps_embedding.weight', accepted: SkyReels-V2-DF 1.3B, which has"),
])  # fmt: skip
def test_the_frame_rate_embedding_must_fit_the_size(tmp_path, dim, fps, message):
    sizes = {"ffn_dim": 4, "num_layers": 1, "num_heads": dim // 128, "text_dim": 4, "freq_dim": 4}
    config = WanConfig(dim=dim, **sizes, fps_embedding=fps)
    # The check looks at names and one size; full matrices of this width would be slow to write.
    tensors = {
        key: torch.zeros([min(n, 4) if axis else n for axis, n in enumerate(shape)], dtype=torch.float16)
        for key, shape in official_shapes(config).items()
    }
    with pytest.raises(SettingError) as refused:
        load_skyreels(single(tmp_path / "other.safetensors", tensors))
    assert message in str(refused.value)


def test_config_and_weights_must_agree(tmp_path):
    path = folder(tmp_path / "folder", random_weights(TINY), official_json(TINY, num_layers=3))
    with pytest.raises(SettingError, match=r"num_layers: got 3, accepted: 2, as in the weights"):
        load_skyreels(path)
    (path / "config.json").write_text(official_json(TINY, model_type="i2v"))
    with pytest.raises(SettingError, match="model_type: got 'i2v', accepted: 't2v'"):
        load_skyreels(path)
    (path / "config.json").write_text("{")
    with pytest.raises(SettingError, match="folder/config.json: got 'unreadable"):
        load_skyreels(path)


def test_missing_keys_are_named(tmp_path):
    tensors = random_weights(TINY)
    del tensors["blocks.1.cross_attn.norm_k.weight"]
    with pytest.raises(SettingError, match=r"missing: blocks\.1\.cross_attn\.norm_k\.weight"):
        load_skyreels(folder(tmp_path / "folder", tensors))
