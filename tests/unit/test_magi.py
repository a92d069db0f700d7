"""The MAGI-1 transformer's sizes, its files, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_weights import MAGI
from magi_tiny import ALONE, TINY, assert_close, forward, tiny, tiny_inputs
from safetensors.torch import save_file
from torch import nn

from flowcache_core.errors import SettingError
from flowcache_core.models.common.cached_attention import attending
from flowcache_core.models.common.operations import CastingOperations
from flowcache_core.models.magi.config import MAGI_4_5B, MAGI_24B, MagiConfig
from flowcache_core.models.magi.layers import attend_grouped
from flowcache_core.models.magi.transformer import MagiTransformer, load_magi


def test_official_4_5b():
    with torch.device("meta"):
        model = MagiTransformer(MAGI_4_5B)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    layer = "videodit_blocks.layers.33."
    expected = {
        "x_embedder.weight": (3072, 16, 1, 2, 2),
        "t_embedder.mlp.0.weight": (768, 256),
        "t_embedder.mlp.0.bias": (768,),
        "t_embedder.mlp.2.weight": (768, 768),
        "y_embedder.y_proj_xattn.0.weight": (3072, 4096),
        "y_embedder.y_proj_adaln.0.weight": (768, 4096),
        "y_embedder.null_caption_embedding": (800, 4096),
        "rope.bands": (16,),
        layer + "ada_modulate_layer.proj.0.weight": (6144, 768),
        layer + "ada_modulate_layer.proj.0.bias": (6144,),
        layer + "self_attention.linear_qkv.layer_norm.weight": (3072,),
        layer + "self_attention.linear_qkv.layer_norm.bias": (3072,),
        layer + "self_attention.linear_qkv.q.weight": (3072, 3072),
        layer + "self_attention.linear_qkv.qx.weight": (3072, 3072),
        layer + "self_attention.linear_qkv.k.weight": (1024, 3072),
        layer + "self_attention.linear_qkv.v.weight": (1024, 3072),
        layer + "self_attention.linear_kv_xattn.weight": (2048, 3072),
        layer + "self_attention.linear_proj.weight": (3072, 6144),
        layer + "self_attention.q_layernorm.weight": (128,),
        layer + "self_attention.q_layernorm_xattn.weight": (128,),
        layer + "self_attention.k_layernorm.bias": (128,),
        layer + "self_attention.k_layernorm_xattn.bias": (128,),
        layer + "self_attn_post_norm.weight": (3072,),
        layer + "mlp_post_norm.bias": (3072,),
        layer + "mlp.layer_norm.weight": (3072,),
        layer + "mlp.linear_fc1.weight": (12288, 3072),
        layer + "mlp.linear_fc2.weight": (3072, 12288),
        "videodit_blocks.final_layernorm.weight": (3072,),
        "videodit_blocks.final_layernorm.bias": (3072,),
        "final_linear.linear.weight": (64, 3072),
    }
    assert expected.items() <= shapes.items()
    assert len(shapes) == 14 + 26 * 34
    assert sum(tensor.numel() for tensor in model.parameters()) == pytest.approx(4.460e9, rel=1e-4)


@pytest.mark.parametrize("config", [MAGI_4_5B, MAGI_24B, MAGI, TINY])
def test_sizes_follow_from_the_weights(config):
    with torch.device("meta"):
        model = MagiTransformer(config)
    assert MagiConfig.from_state_dict(model.state_dict()) == config


def test_24b_has_24_billion_parameters():
    with torch.device("meta"):
        model = MagiTransformer(MAGI_24B)
    assert 23.5e9 < sum(tensor.numel() for tensor in model.parameters()) < 24.5e9


def test_batch_items_do_not_meet():
    model = tiny()
    together = forward(model, 3)
    x, t, caption, mask = tiny_inputs(3)
    for item in range(3):
        part = slice(item, item + 1)
        alone = model.forward_chunk(x[part], t[part], caption[part], mask[part], first_frame=4, attention=ALONE)
        assert_close(together[part], alone)


def test_masked_rows_are_not_seen_and_no_rows_is_allowed():
    model = tiny()
    x, t, caption, mask = tiny_inputs()
    changed = torch.where(mask.bool()[..., None], caption, 99.0)
    expected = model.forward_chunk(x, t, caption, mask, first_frame=0, attention=ALONE)
    assert torch.equal(model.forward_chunk(x, t, changed, mask, first_frame=0, attention=ALONE), expected)
    empty = model.forward_chunk(x, t, caption, torch.zeros_like(mask), first_frame=0, attention=ALONE)
    assert empty.isfinite().all() and not torch.allclose(empty, expected, atol=1e-3)


def test_gated_feed_forward_and_half_channels():
    config = replace(TINY, gated=True, in_dim=32, x_rescale=0.1)
    model = tiny(config)
    mlp = model.videodit_blocks.layers[0].mlp
    h = torch.randn(1, 5, 48)
    first, second = F.linear(mlp.layer_norm(h), mlp.linear_fc1.weight).split(40, -1)
    assert_close(mlp(h), F.linear(first * torch.sigmoid(first) * second, mlp.linear_fc2.weight))
    # The embedding sees the 16 channels twice, times 0.1; the last 16 of 32 output channels are dropped.
    x = tiny_inputs()[0]
    halved = tiny(replace(TINY, gated=True))
    weight = model.x_embedder.weight
    halved.x_embedder.weight.data = 0.1 * (weight[:, :16] + weight[:, 16:])
    assert_close(model.patch_tokens(x), halved.patch_tokens(x))
    before = forward(model)
    final = model.final_linear.linear.weight
    assert before.shape == x.shape
    final.data = final.unflatten(0, (4, 32)).clone().index_fill_(1, torch.arange(16, 32), 7.0).flatten(0, 1)
    assert torch.equal(forward(model), before)


def test_residual_gives_the_velocity_again():
    model = tiny()
    velocity, residual = forward(model, return_residual=True)
    assert_close(model.from_residual(tiny_inputs()[0], residual), velocity, 1e-4)


def test_fp32_parts_stay_fp32_in_bf16():
    model = tiny(dtype=torch.bfloat16)
    fp32 = {name.split(".weight")[0] for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert {"x_embedder", "t_embedder.mlp.0", "final_linear.linear", "rope.bands"} <= fp32
    assert "videodit_blocks.layers.0.self_attn_post_norm" in fp32
    assert "videodit_blocks.layers.0.self_attention.q_layernorm" in fp32
    assert "videodit_blocks.layers.0.self_attention.q_layernorm_xattn" not in fp32
    assert "videodit_blocks.layers.0.self_attention.linear_proj" not in fp32
    seen = []

    def memory(layer, q, k, v):
        seen.append((q.dtype, k.dtype, v.dtype))
        return k, v

    x, t, caption, mask = tiny_inputs()
    velocity = model.forward_chunk(x, t, caption, mask, first_frame=0, attention=attending(memory, attend_grouped))
    assert seen == [(torch.bfloat16,) * 3] * 3
    expected = tiny().forward_chunk(x, t, caption, mask, first_frame=0, attention=ALONE)
    assert velocity.dtype == torch.float32
    assert (velocity - expected).norm() / expected.norm() < 0.03


def test_built_from_given_operations():
    """Every matrix of the model is made by the namespace, so a host can stream, patch and quantise it."""
    made = []

    class Operations(CastingOperations):
        class Linear(nn.Linear):
            def __init__(self, *args, **kwargs) -> None:
                super().__init__(*args, **kwargs)
                made.append(self)

    model = tiny(operations=Operations)
    assert len(made) == sum(parameter.dim() == 2 for parameter in model.parameters()) - 1  # the null caption
    assert torch.equal(forward(model), forward(tiny()))
    # Casts inside the layers make no difference in fp32, and the plain convolution is the product.
    assert_close(forward(tiny(operations=nn)), forward(tiny()))


def save_tiny(folder: Path, shards: int = 1) -> MagiTransformer:
    model = tiny(dtype=torch.bfloat16)
    tensors = model.state_dict()
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return model
    names = [f"model-0000{i + 1}-of-0000{shards}.safetensors" for i in range(shards)]
    places = {key: names[i % shards] for i, key in enumerate(tensors)}
    for name in names:
        save_file({key: tensors[key] for key in tensors if places[key] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return model


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_loads(tmp_path, shards):
    inner = tmp_path / "inference_weight.distill"
    inner.mkdir()
    expected = forward(save_tiny(inner, shards))
    for path in (tmp_path, inner):
        model = load_magi(path)
        assert model.config == TINY and model.dtype == torch.bfloat16
        assert model.final_linear.linear.weight.dtype == torch.float32
        assert_close(forward(model), expected, 1e-2)
    assert load_magi(inner, torch.float32).dtype == torch.float32


def test_prefixed_keys_load(tmp_path):
    model = tiny()
    save_file({f"model.diffusion_model.{k}": v for k, v in model.state_dict().items()}, tmp_path / "a.safetensors")
    assert_close(forward(load_magi(tmp_path / "a.safetensors")), forward(model))


def test_bad_folders_are_refused(tmp_path):
    save_tiny(tmp_path, 3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(SettingError, match=r"1 of 3 shards missing: model-00002-of-00003"):
        load_magi(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(SettingError, match="same folder"):
        load_magi(tmp_path)
    index.write_text("{}")
    with pytest.raises(SettingError, match="weight_map"):
        load_magi(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SettingError, match="empty folder"):
        load_magi(empty)
    for name in ("inference_weight", "inference_weight.distill"):
        (empty / name).mkdir()
    with pytest.raises(SettingError, match=r"one of the folders in it: inference_weight, inference_weight\.distill"):
        load_magi(empty)


def test_other_architectures_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"patch_embedding.weight": torch.zeros(4, 16, 1, 2, 2)}, path)
    with pytest.raises(SettingError, match="a MAGI-1 transformer"):
        load_magi(path)
    tensors = tiny().state_dict()
    tensors["videodit_blocks.layers.1.mlp.linear_fc1.weight"] = torch.zeros(41, 48)
    save_file(tensors, path)
    with pytest.raises(SettingError, match=r"layers\.1\.mlp\.linear_fc1\.weight \[41, 48\], not \[40, 48\]"):
        load_magi(path)
    tensors["videodit_blocks.layers.0.mlp.linear_fc1.weight"] = torch.zeros(60, 48)
    save_file(tensors, path)
    with pytest.raises(SettingError, match=r"60.*40 rows \(plain\), or 80 \(gated\)"):
        load_magi(path)


@pytest.mark.parametrize("shape", [(1, 8, 2, 4, 6), (1, 16, 2, 5, 6), (1, 16, 2, 4, 7), (16, 2, 4, 6)])
def test_latents_of_another_shape_are_refused(shape):
    with pytest.raises(SettingError, match="latents"):
        tiny().patch_tokens(torch.zeros(shape))
