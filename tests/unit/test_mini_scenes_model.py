"""The committed weights of mini scenes: they load, say where they come from, and do what the prompt says."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from flowcache_core.bundled import BUNDLED, load_bundled
from flowcache_core.commands import evaluate_mini
from flowcache_core.errors import SettingError
from flowcache_core.mini import MiniModel
from flowcache_core.mini.evaluate import sample
from flowcache_core.mini_scenes import GUIDANCE, TRANSFORMER_FILE, VAE_FILE, WEIGHTS, data
from flowcache_core.mini_scenes.data import Actor, Scene
from flowcache_core.mini_scenes.evaluate import judged, reconstructed


@pytest.fixture(scope="module")
def scenes() -> MiniModel:
    return load_bundled("scenes")


def test_bundled_models_are_called_by_name() -> None:
    assert set(BUNDLED) == {"mini", "scenes"}
    with pytest.raises(SettingError, match="mini, scenes"):
        load_bundled("large")


def test_sizes_fit_together(scenes: MiniModel) -> None:
    config = scenes.transformer.config
    assert config.text_dim == scenes.encode_prompt("").shape[-1]
    assert scenes.noise(2, seed=0).shape == (1, 16, 6, 16, 16)
    assert scenes.frame_size == data.FRAME_SIZE == 128 and scenes.guidance == GUIDANCE


def test_weights_have_provenance_and_are_small(scenes: MiniModel) -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 10e6
    assert set(scenes.provenance) == {TRANSFORMER_FILE.stem, VAE_FILE.stem}
    for facts in scenes.provenance.values():
        assert {"title", "steps", "seed", "data", "date", "loss"} <= set(facts)
        assert "scenes" in facts["title"] and int(facts["steps"]) > 500
    for path, dtype in ((TRANSFORMER_FILE, torch.float16), (VAE_FILE, torch.float32)):
        with safe_open(path, framework="pt") as file:
            assert {file.get_tensor(key).dtype for key in file.keys()} == {dtype}  # noqa: SIM118


def test_vae_restores_a_clip_to_its_end(scenes: MiniModel) -> None:
    video = data.render(data.random_scenes(2, 77), data.first_frame(4))
    restored = reconstructed(scenes, video)
    error = ((restored - video) / 2).square().mean((0, 1, 3, 4))
    assert -10 * torch.log10(error.mean()) > 26  # dB
    assert -10 * torch.log10(error[-8:].max()) > 24  # to the end
    assert -10 * torch.log10(error.max()) > 20  # of the worst frame, in which night falls


def actor(lane: str, colour: str, shape: str, motion: str, x: float) -> Actor:
    return Actor(lane, colour, shape, motion, 12.5, x, data.LANES[lane])


ASKED = [
    Scene((actor("high", "red", "circle", "right", 40), actor("low", "blue", "square", "left", 80)), "left", "night",
          (0.2, 0.4, 0.6)),
    Scene((actor("middle", "yellow", "triangle", "left", 90),), "right", "day", (0.2, 0.4, 0.6)),
    Scene((actor("high", "white", "square", "right", 40), actor("middle", "green", "circle", "right", 40)), "still",
          "night", (0.2, 0.4, 0.6), changes=1),
    Scene((actor("low", "purple", "circle", "left", 90),), "left", "day", (0.2, 0.4, 0.6), changes=1),
]  # fmt: skip


def test_a_quick_sample_shows_what_was_asked(scenes: MiniModel) -> None:
    prompts = [scene.prompt for scene in ASKED]
    videos = sample(scenes, prompts, chunks=2, steps=10, guidance=GUIDANCE)
    assert videos.shape == (4, 3, 21, 128, 128)
    found = judged(ASKED, videos)
    for name, floor in {"count": 0.75, "colour": 0.75, "direction": 0.6, "pan": 0.75, "light": 0.75}.items():
        assert found[name][0] >= floor, (name, found)


def test_the_evaluation_writes_its_rates(tmp_path, capsys) -> None:
    path = tmp_path / "rates.json"
    run = ("--samples", "1", "--chunks", "1", "--steps", "2", "--kv-budget", "1", "--kv-dtype", "float16")
    assert evaluate_mini.main(["--scenes", *run, "--json", str(path)]) == 0
    rates = json.loads(path.read_text())["rates"]
    assert set(rates) == {"generated", "true videos", "autoencoder"}
    assert rates["true videos"]["pan"] == [1.0, 1]
    assert "camera pans as said" in capsys.readouterr().out
