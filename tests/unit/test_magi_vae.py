"""MAGI-1's autoencoder: against golden data whole and in tiles, streaming, its files."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_weights import digest, draw
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowcache_core.errors import SettingError
from flowcache_core.models.common.tiles import run_tiled
from flowcache_core.models.magi.vae import MagiVAE, MagiVAEConfig, Tiling, load_magi_vae

GOLDEN = Path(__file__).parents[1] / "golden" / "magi_vae.safetensors"
CONFIG = MagiVAEConfig(video_size=32, video_length=8, embed_dim=256, depth=2, num_heads=4, mlp_ratio=0.5)
TILING = Tiling(pixels=32, overlap=0.25, frames=8)
FRAMES = [0, 3, 4, 7, 8, 15]  # of the decoded golden videos
WEIGHTS = "93a7fe713ea282c736f63cba7172324f04f29b023ae74406ea3243c19058cbdc"


@pytest.fixture(scope="module")
def data() -> dict[str, Tensor]:
    return load_file(GOLDEN)


@pytest.fixture(scope="module")
def vae(data) -> MagiVAE:
    vae = MagiVAE(CONFIG)
    weights = draw(vae, seed=61, bias_std=0.05, data=data)
    assert digest(weights) == WEIGHTS, "the stored outputs belong to other weights"
    vae.load_state_dict(weights)
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def video(data) -> Tensor:
    return data["in.video"][None].float() / 127.5 - 1


def assert_close(ours: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= tolerance


def test_encode(vae, data, video):
    native = vae.moments(video[:, :, :8, :32, :32])
    assert_close(native[0], data["encode.moments_native_32x32x8"])
    assert_close(vae.moments(video)[0], data["encode.moments"])
    assert torch.equal(vae.encode(video), vae.moments(video)[:, :16])


def test_encode_an_image(vae, data, video):
    assert_close(vae.encode(video[:, :, :1])[0], data["encode.image"])


def test_encode_in_tiles(vae, data, video):
    assert_close(vae.encode(video, TILING)[0], data["encode.tiled"])


def test_decode(vae, data):
    assert_close(vae.decode(data["in.z"][None])[0, :, FRAMES], data["decode.whole"])
    assert_close(vae.decode(data["in.z"][None, :, :1])[0], data["decode.single_latent_frame"])


def test_decode_in_tiles(vae, data):
    assert_close(vae.decode(data["in.z"][None], TILING)[0, :, FRAMES], data["decode.tiled"])


def test_chunks_may_be_decoded_as_they_end(vae, data):
    z = data["in.z"][None]
    whole = vae.decode(z, TILING)
    parts = list(vae.decode_parts(z, TILING))
    assert [part.shape[2] for part in parts] == [8, 8]
    assert torch.equal(torch.cat(parts, 2), whole)
    streamed = [part for chunk in z.split(2, 2) for part in vae.decode_parts(chunk, TILING)]
    assert torch.equal(torch.cat(streamed, 2), whole)


def test_a_last_run_of_one_latent_frame_keeps_its_frames(vae, data):
    z = data["in.z"][None, :, :3]
    assert vae.decode(z, TILING).shape[2] == 12
    assert vae.decode(z[:, :, :1], TILING).shape[2] == 1


def test_bf16_stays_close(vae, video):
    half = MagiVAE(CONFIG)
    half.load_state_dict(vae.state_dict())
    half = half.to(torch.bfloat16).requires_grad_(False)
    latents, expected = half.encode(video), vae.encode(video)
    assert latents.dtype == torch.float32
    assert (latents - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize(
    "shape", [(1, 3, 6, 32, 32), (1, 3, 4, 36, 32), (1, 4, 4, 32, 32), (3, 4, 32, 32), (1, 3, 0, 32, 32)]
)
def test_videos_of_another_shape_are_refused(vae, shape):
    with pytest.raises(SettingError, match=r"video.*1 or a multiple of 4, multiple of 8, multiple of 8"):
        vae.encode(torch.zeros(shape))


def test_latents_and_tiles_that_do_not_fit_are_refused(vae):
    with pytest.raises(SettingError, match="latents"):
        vae.decode(torch.zeros(1, 4, 2, 4, 4))
    with pytest.raises(SettingError, match="tile pixels"):
        vae.decode(torch.zeros(1, 16, 2, 4, 4), Tiling(pixels=36))
    with pytest.raises(SettingError, match="tile frames"):
        vae.decode(torch.zeros(1, 16, 2, 4, 4), Tiling(pixels=32, frames=6))
    with pytest.raises(SettingError, match="tile overlap"):
        Tiling(overlap=0.9)


# --- tiles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chained", [True, False])
def test_tiles_of_a_local_function_are_the_whole(chained):
    x = torch.randn(1, 2, 1, 9, 13)
    ours = run_tiled(x, lambda part: 2 * part, tile=4, stride=3, ratio=Fraction(1), chained=chained)
    assert_close(ours, 2 * x)


def test_seams_are_linear():
    def tile_number(part: Tensor) -> Tensor:
        counter.append(0)
        return torch.full_like(part, len(counter) - 1.0)

    counter: list[int] = []
    ours = run_tiled(torch.zeros(1, 1, 1, 4, 8), tile_number, tile=8, stride=4, ratio=Fraction(1), chained=False)
    assert ours[0, 0, 0, 0].tolist() == [0, 0, 0, 0, 0, 0.25, 0.5, 0.75]


# --- files -------------------------------------------------------------------------------------------------------

SMALL = {"embed_dim": 256, "depth": 1, "num_heads": 4, "mlp_ratio": 0.5, "video_size": 32, "video_length": 8}


def save(folder: Path, config: dict) -> None:
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    save_file(MagiVAE(MagiVAEConfig(**SMALL)).state_dict(), folder / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "ViTVAE", "_diffusers_version": "0.30", "model_type": "vit", "encoder_config": SMALL},
        {"encoder_config": {**SMALL, "drop_rate": 0.0, "double_z": True, "use_rope": False}, "decoder_config": None},
        {"ddconfig": SMALL},
        {"_class_name": "ViTVAE", **SMALL},
    ],
)
def test_the_config_lies_beside_the_weights(tmp_path, config):
    save(tmp_path, config)
    expected = MagiVAE(MagiVAEConfig(**SMALL))
    for path in (tmp_path, tmp_path / "diffusion_pytorch_model.safetensors"):
        vae = load_magi_vae(path)
        assert vae.config == expected.config
        assert vae.decode(torch.zeros(1, 16, 2, 4, 4)).shape == (1, 3, 8, 32, 32)
    assert load_magi_vae(tmp_path, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "config, message",
    [
        ({"_class_name": "AutoencoderKL"}, r"_class_name.*AutoencoderKL.*ViTVAE"),
        ({"ddconfig": {**SMALL, "use_rope": True}}, "use_rope"),
        ({"ddconfig": {**SMALL, "use_ropes": 1}}, "use_ropes"),
        ({"encoder_config": SMALL, "decoder_config": {**SMALL, "depth": 2}}, "decoder_config"),
        ({"ddconfig": {"embed_dim": 256}}, "no depth, num_heads"),
        ({"ddconfig": {**SMALL, "num_heads": 3}}, "num_heads"),
        ({"ddconfig": {**SMALL, "depth": "2"}}, "depth"),
        ({"ddconfig": {**SMALL, "embed_dim": 300}}, "multiple of the patch's 256 pixels"),
        ({"model_type": "titok"}, "model_type"),
    ],
)
def test_other_configs_are_refused(config, message):
    with pytest.raises(SettingError, match=message):
        MagiVAEConfig.from_dict(config)


def test_missing_or_other_files_are_refused(tmp_path):
    with pytest.raises(SettingError, match=r"a config\.json beside"):
        load_magi_vae(tmp_path)
    save(tmp_path, {"ddconfig": {**SMALL, "depth": 2}})
    with pytest.raises(SettingError, match=r"missing: encoder\.blocks\.1"):
        load_magi_vae(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SettingError, match=r"config\.json.*JSON"):
        load_magi_vae(tmp_path)


def test_released_sizes():
    with torch.device("meta"):
        vae = MagiVAE(MagiVAEConfig())
    shapes = {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    expected = {
        "encoder.cls_token": (1, 1, 1024),
        "encoder.pos_embed": (1, 4 * 32 * 32 + 1, 1024),
        "encoder.patch_embed.proj.weight": (1024, 3, 4, 8, 8),
        "encoder.blocks.23.attn.qkv.weight": (3072, 1024),
        "encoder.blocks.23.attn.proj.bias": (1024,),
        "encoder.blocks.23.norm2.weight": (1024,),
        "encoder.blocks.23.mlp.fc1.weight": (4096, 1024),
        "encoder.last_layer.weight": (32, 1024),
        "decoder.proj_in.weight": (1024, 16),
        "decoder.norm.weight": (1024,),
        "decoder.last_layer.weight": (3, 4, 3, 3, 3),
    }
    assert expected.items() <= shapes.items()
    assert not any("norm1" in name for name in shapes)


def test_values_are_standardised_too(vae):
    attention = vae.encoder.blocks[0].attn
    x = torch.randn(1, 6, 256)
    q, k, v = (
        F.layer_norm(part.unflatten(-1, (4, 64)), (64,), eps=0).transpose(1, 2)
        for part in attention.qkv(x).chunk(3, -1)
    )
    expected = attention.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    assert_close(attention(x), expected, 1e-4)
