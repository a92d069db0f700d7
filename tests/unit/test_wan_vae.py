"""The Wan 2.1 autoencoder: its layout, streaming, causality and what it refuses to load."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flowcache_core.errors import SettingError
from flowcache_core.models.wan.vae import StreamDecoder, WanVAE, load_wan_vae, wan_decoder
from flowcache_core.models.wan.vae_layers import WanVAEConfig


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    torch.manual_seed(0)
    model = WanVAE(WanVAEConfig(dim=8)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(0, 0.1)
    return model


@pytest.fixture(scope="module")
def latents() -> Tensor:
    return torch.randn(1, 16, 7, 3, 4, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def video() -> Tensor:
    return torch.rand(1, 3, 17, 24, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1


def test_full_size_layout_is_the_official_one() -> None:
    with torch.device("meta"):
        model = WanVAE()
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert sum(p.numel() for p in model.parameters()) == 126_892_531
    assert len(shapes) == 194
    expected = {
        "encoder.conv1.weight": (96, 3, 3, 3, 3),
        "encoder.downsamples.2.resample.1.weight": (96, 96, 3, 3),
        "encoder.downsamples.3.shortcut.weight": (192, 96, 1, 1, 1),
        "encoder.downsamples.5.time_conv.weight": (192, 192, 3, 1, 1),
        "encoder.downsamples.10.residual.6.bias": (384,),
        "encoder.middle.1.to_qkv.weight": (1152, 384, 1, 1),
        "encoder.middle.1.norm.gamma": (384, 1, 1),
        "encoder.head.0.gamma": (384, 1, 1, 1),
        "encoder.head.2.weight": (32, 384, 3, 3, 3),
        "conv1.weight": (32, 32, 1, 1, 1),
        "conv2.weight": (16, 16, 1, 1, 1),
        "decoder.conv1.weight": (384, 16, 3, 3, 3),
        "decoder.middle.2.residual.2.weight": (384, 384, 3, 3, 3),
        "decoder.upsamples.3.time_conv.weight": (768, 384, 3, 1, 1),
        "decoder.upsamples.3.resample.1.weight": (192, 384, 3, 3),
        "decoder.upsamples.4.shortcut.weight": (384, 192, 1, 1, 1),
        "decoder.upsamples.11.resample.1.bias": (96,),
        "decoder.upsamples.14.residual.3.gamma": (96, 1, 1, 1),
        "decoder.head.0.gamma": (96, 1, 1, 1),
        "decoder.head.2.weight": (3, 96, 3, 3, 3),
    }
    assert {key: shapes.get(key) for key in expected} == expected
    # Levels without a change of width or of time have neither shortcut nor time_conv.
    assert "encoder.downsamples.2.time_conv.weight" not in shapes
    assert "decoder.upsamples.11.time_conv.weight" not in shapes
    assert "encoder.downsamples.0.shortcut.weight" not in shapes


@pytest.mark.parametrize("split", [[1] * 7, [3, 3, 1], [1, 6], [2, 5], [6, 1]])
def test_streaming_decode_equals_whole_decode(vae: WanVAE, latents: Tensor, split: list[int]) -> None:
    whole = vae.decode(latents, frames_at_once=None)
    assert whole.shape == (1, 3, 25, 24, 32)
    pieces = list(vae.decode_stream(latents.split(split, dim=2)))
    assert pieces[0].shape[2] == 1 + 4 * (split[0] - 1)
    assert all(piece.shape[2] == 4 * count for piece, count in zip(pieces[1:], split[1:]))
    assert torch.allclose(torch.cat(pieces, 2), whole, atol=1e-5)


def test_streaming_memory_does_not_grow(vae: WanVAE, latents: Tensor) -> None:
    decoder = StreamDecoder(vae)
    sizes = []
    for _ in range(6):
        decoder(latents[:, :, :3])
        sizes.append(sum(t.numel() for t in decoder._state.values()))
    assert len(set(sizes[1:])) == 1


@pytest.mark.parametrize("frames_at_once", [4, 8, 16])
def test_encode_in_parts_equals_whole(vae: WanVAE, video: Tensor, frames_at_once: int) -> None:
    whole = vae.encode(video, frames_at_once=None)
    assert whole.shape == (1, 16, 5, 3, 4)
    assert torch.allclose(vae.encode(video, frames_at_once=frames_at_once), whole, atol=1e-5)


@pytest.mark.parametrize("kept", [1, 5, 9])
def test_encode_is_causal(vae: WanVAE, video: Tensor, kept: int) -> None:
    changed = video.clone()
    changed[:, :, kept:] = -changed[:, :, kept:]
    before, after = vae.encode(video), vae.encode(changed)
    known = 1 + (kept - 1) // 4
    assert torch.allclose(before[:, :, :known], after[:, :, :known], atol=1e-5)
    assert not torch.allclose(before[:, :, known], after[:, :, known], atol=1e-3)


def test_single_image_and_clamp(vae: WanVAE, latents: Tensor) -> None:
    image = vae.decode(50 * latents[:, :, :1])
    assert image.shape == (1, 3, 1, 24, 32)
    assert image.abs().max() <= 1
    assert vae.encode(image).shape == (1, 16, 1, 3, 4)


def test_latents_are_normalised_with_wans_constants(vae: WanVAE, video: Tensor) -> None:
    raw = vae.conv1(vae.encoder(video))[:, :16]
    assert torch.allclose(vae.encode(video)[0, 7], (raw[0, 7] - 1.5508) / 2.0743, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 16, 24, 32), (1, 3, 17, 20, 32), (1, 4, 17, 24, 32), (3, 17, 24, 32)])
def test_encode_refuses_other_shapes(vae: WanVAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        vae.encode(torch.zeros(shape))


def test_bad_arguments_are_named(vae: WanVAE, video: Tensor, latents: Tensor) -> None:
    with pytest.raises(ValueError, match="frames_at_once"):
        vae.encode(video, frames_at_once=6)
    with pytest.raises(ValueError, match="frames_at_once"):
        vae.decode(latents, frames_at_once=0)
    with pytest.raises(ValueError, match="16, F, h, w"):
        vae.decode(latents[:, :4])
    decoder = StreamDecoder(vae)
    decoder(latents[:, :, :2])
    with pytest.raises(ValueError, match="started"):
        decoder(latents[..., :2])


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_load_round_trip(vae: WanVAE, latents: Tensor, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"vae{suffix}"
    save_file(vae.state_dict(), path) if suffix == ".safetensors" else torch.save(vae.state_dict(), path)
    loaded = load_wan_vae(path)
    assert loaded.config == WanVAEConfig(dim=8)
    assert torch.equal(loaded.decode(latents), vae.decode(latents))


def test_load_refuses_wrong_files(vae: WanVAE, tmp_path: Path) -> None:
    state = vae.state_dict()

    def refused(name: str, pattern: str) -> None:
        with pytest.raises(ValueError, match=pattern) as error:
            load_wan_vae(tmp_path / name)
        assert name in str(error.value) and "accepted" in str(error.value)

    refused("absent.safetensors", "existing file")
    save_file(state, tmp_path / "whole.safetensors")
    content = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    refused("cut.safetensors", "unreadable")
    lacking = {key: value for key, value in state.items() if key != "decoder.middle.0.residual.2.bias"}
    save_file(lacking, tmp_path / "lacking.safetensors")
    refused("lacking.safetensors", "decoder.middle.0.residual.2.bias")
    save_file({"model.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    refused("other.safetensors", "decoder.head.0.gamma")
    save_file({**state, "conv2.weight": torch.zeros(4, 4, 1, 1, 1)}, tmp_path / "narrow.safetensors")
    refused("narrow.safetensors", "4 latent channels")
    save_file({**state, "conv1.bias": torch.zeros(8)}, tmp_path / "misshapen.safetensors")
    refused("misshapen.safetensors", "conv1.bias")
    save_file({**state, "extra.weight": torch.zeros(8)}, tmp_path / "foreign.safetensors")
    refused("foreign.safetensors", "extra.weight")
    (tmp_path / "kind.ckpt").write_bytes(b"")
    refused("kind.ckpt", "ckpt")


class _Code:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.marker,)  # type: ignore[return-value]


def test_load_never_runs_code(tmp_path: Path) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "ran"
    path.write_bytes(pickle.dumps({"conv2.weight": _Code(marker)}))
    with pytest.raises(ValueError, match="evil.pth"):
        load_wan_vae(path)
    assert not marker.exists()


@torch.no_grad()
def test_decoder_over_tensors_of_someone_else(vae: WanVAE, latents: Tensor) -> None:
    given = vae.state_dict()
    decode = wan_decoder(given, "preview_vae", device=torch.device("cpu"), dtype=torch.float32)
    pieces = [decode(frame) for frame in latents.split(1, 2)]
    assert torch.allclose(torch.cat(pieces, 2), vae.decode(latents), atol=1e-5)
    held = decode._vae.decoder.state_dict()
    assert all(tensor.data_ptr() == given[f"decoder.{key}"].data_ptr() for key, tensor in held.items())
    assert next(decode._vae.encoder.parameters()).is_meta


def test_decoder_refuses_other_architectures(vae: WanVAE) -> None:
    device, dtype = torch.device("cpu"), torch.float32
    with pytest.raises(SettingError, match="preview_vae: got 'no decoder.head.0.gamma and no conv2.weight'"):
        wan_decoder({"decoder.conv_in.weight": torch.zeros(1)}, "preview_vae", device=device, dtype=dtype)
    half = {key: tensor for key, tensor in vae.state_dict().items() if key != "decoder.conv1.bias"}
    with pytest.raises(SettingError, match="preview_vae.*missing: conv1.bias"):
        wan_decoder(half, "preview_vae", device=device, dtype=dtype)
