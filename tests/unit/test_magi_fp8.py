"""MAGI-1's quantised weights: the product of the quantised layers, without the rounding of their inputs."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flowcache_core.errors import SettingError
from flowcache_core.models.magi.config import MagiConfig
from flowcache_core.models.magi.fp8 import dequantize
from flowcache_core.models.magi.transformer import MagiTransformer, load_magi

FP8 = torch.float8_e4m3fn
CONFIG = MagiConfig(48, 40, 3, 6, 2, 8, 12, text_dim=20, text_len=10, freq_dim=16, bands=1)
MIDDLE = "videodit_blocks.layers.1."


def quantize(weight: Tensor, smooth: Tensor | None = None) -> dict[str, Tensor]:
    """What the model's file holds for a layer; ``smooth``: what each input column is divided by."""
    if smooth is None:
        scale = weight.abs().max() / 448
        return {
            "weight": (weight / scale).to(FP8)[None],
            "weight_scale": scale.reshape(1),
            "input_scale": torch.full((weight.shape[1],), 0.05),
        }
    stretched = weight * smooth / 0.05
    scale = stretched.abs().max() / 448
    return {
        "weight": (stretched / scale).to(FP8)[None],
        "weight_scale": scale.reshape(1),
        "input_scale": torch.tensor([0.05]),
        "smooth_scale": smooth[None],
    }


def quantized_product(x: Tensor, layer: dict[str, Tensor]) -> Tensor:
    """The layer as declared: input divided, (not rounded here), product scaled."""
    divisor = layer.get("smooth_scale", layer["input_scale"]).flatten()
    return (x / divisor) @ layer["weight"][0].float().T * layer["input_scale"][0] * layer["weight_scale"]


@pytest.mark.parametrize("smoothed", [False, True])
def test_same_product(smoothed):
    draw = torch.Generator().manual_seed(0)
    weight, x = torch.randn(12, 16, generator=draw), torch.randn(4, 16, generator=draw)
    layer = quantize(weight, torch.rand(16, generator=draw) + 0.5 if smoothed else None)
    restored = dequantize({f"a.{key}": tensor for key, tensor in layer.items()}, torch.float32)
    assert set(restored) == {"a.weight"}
    assert torch.allclose(x @ restored["a.weight"].T, quantized_product(x, layer), atol=1e-5)
    assert (restored["a.weight"] - weight).abs().max() < 0.04 * weight.abs().max()


def test_input_scales_that_differ_between_columns():
    layer = quantize(torch.randn(3, 4)) | {"input_scale": torch.tensor([0.1, 0.2, 0.3, 0.4])}
    restored = dequantize({f"a.{key}": tensor for key, tensor in layer.items()}, torch.float32)
    x = torch.randn(2, 4)
    assert torch.allclose(x @ restored["a.weight"].T, quantized_product(x, layer), atol=1e-6)


def test_comfy_scale_and_plain_fp8():
    weight = torch.tensor([[1.0, -2.0]])
    scaled = {"a.weight": weight.to(FP8), "a.scale_weight": torch.tensor(0.5), "scaled_fp8": torch.zeros(0)}
    assert torch.equal(dequantize(scaled)["a.weight"], torch.tensor([[0.5, -1.0]], dtype=torch.bfloat16))
    assert set(dequantize(scaled)) == {"a.weight"}
    assert torch.equal(dequantize({"a.weight": weight.to(FP8)})["a.weight"], weight.bfloat16())


def test_scales_of_another_shape_are_refused():
    layer = {f"a.{key}": tensor for key, tensor in quantize(torch.randn(3, 4), torch.ones(4)).items()}
    with pytest.raises(SettingError, match=r"a\.smooth_scale.*4 value"):
        dequantize(layer | {"a.smooth_scale": torch.ones(1, 5)})
    with pytest.raises(SettingError, match=r"a\.weight_scale.*1 value"):
        dequantize(layer | {"a.weight_scale": torch.ones(3)})
    with pytest.raises(SettingError, match="no input_scale"):
        dequantize({key: tensor for key, tensor in layer.items() if key != "a.input_scale"})
    with pytest.raises(SettingError, match=r"b\.weight.*fp8 without weight_scale"):
        dequantize(layer | {"b.weight": torch.ones(2, 2).to(FP8)})


def test_a_quantised_file_loads(tmp_path):
    torch.manual_seed(1)
    model = MagiTransformer(CONFIG, dtype=torch.bfloat16)
    tensors = model.state_dict()
    smoothed = ("self_attention.linear_proj", "mlp.linear_fc2")
    plain = ("self_attention.linear_qkv.q", "self_attention.linear_qkv.k", "mlp.linear_fc1")
    for name in plain + smoothed:
        weight = tensors.pop(f"{MIDDLE}{name}.weight").float()
        layer = quantize(weight, torch.rand(weight.shape[1]) + 0.5 if name in smoothed else None)
        tensors |= {f"{MIDDLE}{name}.{key}": tensor for key, tensor in layer.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    loaded = load_magi(tmp_path)
    assert loaded.config == CONFIG and loaded.dtype == torch.bfloat16
    for name, parameter in model.named_parameters():
        error = (loaded.get_parameter(name).float() - parameter.float()).abs().max()
        assert error <= 0.07 * parameter.abs().max(), name
