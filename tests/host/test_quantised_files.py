"""fp8 files in every form that is about: the node's video is the core's, or the keys that nobody reads are named."""

from __future__ import annotations

import json

import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from hostkit import metadata, module, sample, state_dict
from safetensors.torch import save_file
from test_host_core_agreement import CAUSAL, MANY_STEP, SHIFT, Both, Case, agree
from tiny_files import wan_weights
from torch import Tensor

SettingError = module("flowcache_core.errors").SettingError
load_ar_model = module("nodes.adapters.files.checkpoints").load_ar_model
load_wan = module("flowcache_core.models.wan.load").load_wan
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
SCALE = 2.0**-6  # a power of two: what is multiplied out has no more bits than it had
LINEAR = ("blocks.0.ffn.0", "blocks.0.self_attn.q", "blocks.1.cross_attn.v", "time_projection.1", "head.head")


def stored(
    layers: tuple[str, ...] = LINEAR, scale_name: str = "scale_weight", dtype: torch.dtype = E4M3, rows: bool = False
) -> dict[str, Tensor]:
    """A tiny model with some layers in fp8; their true weights are 1/64 of what the file holds."""
    weights = state_dict()
    for layer in layers:
        weight = weights[f"{layer}.weight"]
        weights[f"{layer}.weight"] = (weight / SCALE).to(dtype)
        shape = (weight.shape[0], 1) if rows else ()
        weights[f"{layer}.{scale_name}"] = torch.full(shape, SCALE)
    return weights


def listed(names: tuple[str, ...], form: str = "float8_e4m3fn") -> dict[str, str]:
    return {"_quantization_metadata": json.dumps({"layers": {name: {"format": form} for name in names}})}


def as_bytes(how: object) -> Tensor:
    return torch.tensor(list(json.dumps(how).encode()), dtype=torch.uint8)


MARKER = {"scaled_fp8": torch.zeros(2, dtype=E4M3)}
FORMS = {
    "scale_weight and marker": ({**stored(), **MARKER}, {}),
    "scale_weight without marker": (stored(), {}),
    "weight_scale without a list": (stored(scale_name="weight_scale"), {}),
    "weight_scale with a list": (stored(scale_name="weight_scale"), listed(LINEAR)),
    "weight_scale and comfy_quant": (
        {**stored(scale_name="weight_scale"),
         **{f"{layer}.comfy_quant": as_bytes({"format": "float8_e4m3fn"}) for layer in LINEAR}}, {}),
    "e5m2 and marker": ({**stored(dtype=E5M2), "scaled_fp8": torch.zeros(2, dtype=E5M2)}, {}),
    "e5m2 without marker": (stored(dtype=E5M2), {}),
    "a scale for every row": (stored(rows=True), {}),
    "a scaled convolution": (stored((*LINEAR, "patch_embedding")), {}),
    "input scales of 1": (
        {**stored(), **MARKER, **{f"{layer}.scale_input": torch.tensor(1.0) for layer in LINEAR}}, {}),
    "under a prefix": (
        {f"model.diffusion_model.{key}": value for key, value in stored().items()}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_the_video_is_the_cores(tmp_path, name):
    weights, said = FORMS[name]
    path = tmp_path / "m.safetensors"
    save_file(weights, path, metadata={**metadata(causal=False), **said})
    with torch.inference_mode():  # as the host runs nodes; its quantised tensors cannot be moved otherwise
        host = load_ar_model(str(path), "default", "skyreels-v2-df", 24)
        both = Both(ModelSamplingSD3().patch(host, SHIFT)[0], load_wan(path, torch.float32), 24)
        agree(both, Case(CAUSAL if "marker" in name else MANY_STEP, cfg=4.0))


def changed(**tensors: Tensor) -> dict[str, Tensor]:
    return {**state_dict(), **{key.replace("__", "."): value for key, value in tensors.items()}}


INT8 = torch.zeros(48, 24, dtype=torch.int8)
ONE = torch.ones(())
# What the core and the node both refuse, and the key that both name.
REFUSED = {
    "int8 weights": (changed(blocks__0__ffn__0__weight=INT8), "blocks.0.ffn.0.weight"),
    "int8 weights and their scale": (
        changed(blocks__0__ffn__0__weight=INT8, blocks__0__ffn__0__weight_scale=ONE), "blocks.0.ffn.0.weight_scale"),
    "a scale of a weight in fp32": (changed(blocks__0__ffn__0__scale_weight=ONE), "blocks.0.ffn.0.scale_weight"),
    "a scale of nothing": (changed(blocks__7__scale_weight=ONE), "blocks.7.scale_weight"),
    "an input scale of nothing": (changed(blocks__0__ffn__0__scale_input=ONE), "blocks.0.ffn.0.scale_input"),
    "a scale under another name": (
        changed(blocks__0__ffn__0__weight_scale_inv=ONE), "blocks.0.ffn.0.weight_scale_inv"),
    "block scales": ({**stored(), "blocks.0.ffn.0.scale_weight": torch.ones(3, 2)}, "blocks.0.ffn.0.scale_weight"),
    "a scale that is no number": ({**stored(), "head.head.scale_weight": torch.tensor(torch.nan)},
                                  "head.head.scale_weight"),
    "two scales": ({**stored(), "head.head.weight_scale": ONE}, "head.head"),
    "one scale missing": ({k: v for k, v in stored().items() if k != "head.head.scale_weight"}, "head.head.weight"),
    "a marker and no scale": ({**{k: v for k, v in stored().items() if "scale" not in k}, **MARKER}, ".weight"),
    "whole numbers as scales": ({**stored(), "head.head.scale_weight": torch.ones((), dtype=torch.int32)},
                                "head.head.scale_weight"),
    "a bias of whole numbers": (changed(blocks__0__ffn__0__bias=torch.ones(48, dtype=torch.int64)),
                                "blocks.0.ffn.0.bias"),
    "a tensor too many": (changed(blocks__0__ffn__0__extra=ONE), "blocks.0.ffn.0.extra"),
    "bitsandbytes": (changed(**{"blocks__0__ffn__0__weight__absmax": torch.ones(3)}), "absmax"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_nobody_reads_is_named(tmp_path, name):
    weights, key = REFUSED[name]
    path = tmp_path / "m.safetensors"
    save_file(weights, path, metadata=metadata(causal=False))
    for load in (lambda: load_wan(path), lambda: load_ar_model(str(path), "default", "auto", 24)):
        with pytest.raises(SettingError) as caught:
            load()
        assert key in str(caught.value), caught.value


@pytest.mark.parametrize("how", [{"format": "int8_tensorwise"}, {"format": "made up"}, {}, [1], {"format": [1]}])
def test_a_layer_in_a_format_that_is_not_its_own(tmp_path, how):
    """The host reads such layers itself; whatever it makes of them, it says so under our field."""
    weights = {**stored(scale_name="weight_scale"), "head.head.comfy_quant": as_bytes(how)}
    path = tmp_path / "m.safetensors"
    save_file(weights, path, metadata=metadata(causal=False))
    with pytest.raises(SettingError, match="head.head"):
        load_wan(path)


def test_the_hosts_int8_layers_are_read_by_the_host(tmp_path):
    weights = state_dict()
    layer = "blocks.0.ffn.0"
    scale = weights[f"{layer}.weight"].abs().max() / 127
    whole = (weights[f"{layer}.weight"] / scale).round()
    packed = {**weights, f"{layer}.weight": whole.to(torch.int8), f"{layer}.weight_scale": scale,
              f"{layer}.comfy_quant": as_bytes({"format": "int8_tensorwise"})}  # fmt: skip
    save_file(packed, tmp_path / "m.safetensors", metadata=metadata(causal=False))
    with torch.inference_mode():
        host = load_ar_model(str(tmp_path / "m.safetensors"), "default", "skyreels-v2-df", 24)
        held = host.model.diffusion_model.blocks[0].ffn[0].weight.dequantize()
    torch.testing.assert_close(held.float(), whole * scale, rtol=1e-6, atol=0)  # its products round the input too
    with pytest.raises(SettingError, match="blocks.0.ffn.0.*int8_tensorwise"):
        load_wan(tmp_path / "m.safetensors")


WIDE = ("blocks.0.self_attn.q", "blocks.0.ffn.0", "blocks.1.ffn.2", "text_embedding.0", "time_embedding.0")


def nvfp4(weights: dict[str, Tensor], layers: tuple[str, ...] = WIDE) -> dict[str, Tensor]:
    """These layers in the host's NVFP4: two values in a byte, a scale for 16 of them, and one for all."""
    packed = dict(weights)
    for layer in layers:
        stored = QuantizedTensor.from_float(weights[f"{layer}.weight"].bfloat16(), "TensorCoreNVFP4Layout")
        packed[f"{layer}.weight"] = stored._qdata.contiguous()
        packed[f"{layer}.weight_scale"] = stored._params.block_scale.contiguous()
        packed[f"{layer}.weight_scale_2"] = stored._params.scale.reshape(())
        packed[f"{layer}.comfy_quant"] = as_bytes({"format": "nvfp4"})
    return packed


def unpacked(host: object, weights: dict[str, Tensor], layers: tuple[str, ...] = WIDE) -> dict[str, Tensor]:
    """The file's weights with those layers as the host has read them."""
    inner = host.model.diffusion_model  # type: ignore[attr-defined]
    read = {f"{layer}.weight": inner.get_submodule(layer).weight.dequantize().float() for layer in layers}
    return {**weights, **read}


def test_the_hosts_nvfp4_files_are_read_by_the_host(tmp_path, monkeypatch):
    """Sizes are those of the unpacked weights, and the video is that of the same values in 32 bits."""
    weights = wan_weights()
    save_file(nvfp4(weights), tmp_path / "packed.safetensors")
    text = [[torch.randn(1, 3, 4096, generator=torch.Generator().manual_seed(2)), {}]]
    with torch.inference_mode():
        host = load_ar_model(str(tmp_path / "packed.safetensors"), "default", "causal wan", 24)
        plain = unpacked(host, weights)
        error = (plain["blocks.0.ffn.0.weight"] - weights["blocks.0.ffn.0.weight"]).abs().mean()
        assert 0 < error < 0.15 * weights["blocks.0.ffn.0.weight"].abs().mean()
        save_file(plain, tmp_path / "plain.safetensors")
        same = load_ar_model(str(tmp_path / "plain.safetensors"), "default", "causal wan", 24)
        one, other = (sample(ModelSamplingSD3().patch(m, 5.0)[0], positive=text)[0] for m in (host, same))
    assert one.std() > 0.1 and (one - other).abs().max() < 0.05 * other.std()


@pytest.mark.parametrize("missing", ["weight_scale", "weight_scale_2"])
def test_an_nvfp4_layer_without_its_scales_is_named(tmp_path, missing):
    weights = {key: value for key, value in nvfp4(wan_weights()).items() if key != f"blocks.0.ffn.0.{missing}"}
    save_file(weights, tmp_path / "m.safetensors")
    with torch.inference_mode(), pytest.raises(SettingError, match=r"model_name.*(blocks\.0\.ffn\.0|NVFP4)"):
        load_ar_model(str(tmp_path / "m.safetensors"), "default", "causal wan", 24)


def test_nvfp4_scales_without_a_mark_are_named(tmp_path):
    """As other projects write them: packed bytes and scales, and nothing that says how they are packed."""
    packed = {key: value for key, value in nvfp4(wan_weights()).items() if not key.endswith("comfy_quant")}
    save_file(packed, tmp_path / "m.safetensors")
    for load in (lambda: load_wan(tmp_path / "m.safetensors"),
                 lambda: load_ar_model(str(tmp_path / "m.safetensors"), "default", "causal wan", 24)):  # fmt: skip
        with pytest.raises(SettingError, match=r"weight_scale|uint8"):
            load()


def test_the_core_says_that_it_reads_no_nvfp4(tmp_path):
    save_file(nvfp4(wan_weights()), tmp_path / "m.safetensors")
    with pytest.raises(SettingError, match="format nvfp4.*float8_e4m3fn"):
        load_wan(tmp_path / "m.safetensors")
