"""The committed weights: they load, say where they come from, and do what the prompt says."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from flowcache_core.mini import TRANSFORMER_FILE, VAE_FILE, WEIGHTS, MiniModel, data, load_mini
from flowcache_core.mini.evaluate import sample, score


@pytest.fixture(scope="module")
def mini() -> MiniModel:
    return load_mini()


def test_sizes_fit_together(mini: MiniModel) -> None:
    config = mini.transformer.config
    assert config.text_dim == mini.encode_prompt("").shape[-1]
    assert (config.in_dim, config.out_dim) == (16, 16)
    assert mini.noise(2, seed=0).shape == (1, 16, 6, 8, 8)
    assert torch.equal(mini.noise(1, seed=3), mini.noise(1, seed=3))
    assert mini.chunk_frames == 3 and mini.frame_size == 64


def test_weights_have_provenance_and_are_small(mini: MiniModel) -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 20e6
    assert set(mini.provenance) == {TRANSFORMER_FILE.stem, VAE_FILE.stem}
    for facts in mini.provenance.values():
        assert {"title", "steps", "seed", "data", "date", "loss"} <= set(facts)
        assert int(facts["steps"]) > 500


def test_files_have_the_dtypes_a_host_expects() -> None:
    for path, dtype in ((TRANSFORMER_FILE, torch.float16), (VAE_FILE, torch.float32)):
        with safe_open(path, framework="pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {dtype}  # noqa: SIM118


def test_vae_restores_a_clip_to_its_end(mini: MiniModel) -> None:
    video = data.render(data.random_clips(2, 77), 45)
    restored = mini.vae.decode(mini.vae.encode(video))
    error = ((restored - video) / 2).square().mean((0, 1, 3, 4))
    assert -10 * torch.log10(error.max()) > 20  # dB, of the worst frame


def test_a_quick_sample_shows_what_was_asked(mini: MiniModel) -> None:
    clips = [
        data.Clip("red", "circle", "right", 11, 20, 32),
        data.Clip("green", "square", "left", 11, 44, 32),
        data.Clip("blue", "triangle", "down", 11, 32, 20),
        data.Clip("yellow", "circle", "up", 11, 32, 44),
    ]
    videos = sample(mini, [clip.prompt for clip in clips], chunks=2, steps=10, guidance=3.0)
    assert videos.shape == (4, 3, 21, 64, 64)
    result = score(clips, videos, steps=10, guidance=3.0)
    assert result.colour >= 0.9
    assert result.direction >= 0.75
