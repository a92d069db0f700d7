"""The mini MAGI: its training forward is the model's own, and its weights do what the prompt says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from flowcache_core.engine import generate
from flowcache_core.mini import VAE_FILE, data, encode_prompt
from flowcache_core.mini import transformer_training as shared
from flowcache_core.mini.evaluate import score
from flowcache_core.mini_magi import TRANSFORMER_FILE, MiniMagi, load_mini_magi, text_guidance
from flowcache_core.mini_magi.evaluate import sample
from flowcache_core.mini_magi.forward import forward_clip
from flowcache_core.mini_magi.training import RECIPE, build, chunk_times
from flowcache_core.models.common.cached_attention import attending
from flowcache_core.models.magi.guidance import CLEAN_TIME
from flowcache_core.models.magi.layers import attend_grouped
from flowcache_core.models.magi.transformer import MagiTransformer
from flowcache_core.models.wan.vae import WanVAE
from flowcache_core.models.wan.vae_layers import WanVAEConfig
from flowcache_core.schedule import magi


@pytest.fixture(scope="module")
def mini() -> MiniMagi:
    return load_mini_magi()


# --- training ----------------------------------------------------------------------------------------------------


def chunk_by_chunk(model: MagiTransformer, x: Tensor, t: Tensor, text: Tensor, null: bool, alone: bool) -> Tensor:
    """One clip as sampling computes it, every chunk against the K/V of those before it."""
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def memory(layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer in kept and not alone:
            k, v = torch.cat((kept[layer][0], k), 2), torch.cat((kept[layer][1], v), 2)
        kept[layer] = (k, v)
        return k, v

    parts = []
    for chunk, time in enumerate(t):
        rows = model.y_embedder.null_caption_embedding[None] if null else text[None]
        part = model.forward_chunk(
            x[None, :, 3 * chunk : 3 * chunk + 3],
            time[None],
            rows,
            torch.ones(rows.shape[:2]),
            first_frame=3 * chunk,
            attention=attending(memory, attend_grouped),
            dropped=null,
        )
        assert isinstance(part, Tensor)
        parts.append(part)
    return torch.cat(parts, 2)


@torch.no_grad()
def test_all_chunks_at_once_are_the_chunks_one_by_one() -> None:
    torch.manual_seed(0)
    model = build()
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x, t = torch.randn(4, 16, 9, 8, 8), torch.rand(4, 3)
    text = torch.cat([encode_prompt(p) for p in ("a red circle", "square", "moving up", "blue")])
    null = torch.tensor([[False], [True], [False], [True]])
    alone = torch.tensor([False, False, True, True])
    together = forward_clip(model, x, t, text, null=null.expand(-1, 3), dropped=null.expand(-1, 3), alone=alone)
    assert together.std() > 0.5
    for row in range(4):
        one = chunk_by_chunk(model, x[row], t[row], text[row], bool(null[row]), bool(alone[row]))
        assert (one - together[row : row + 1]).abs().max() < 1e-5 * together.std()


def test_times_are_those_of_the_window() -> None:
    levels = chunk_times(4000, 5, torch.Generator().manual_seed(0))
    assert levels.t.min() == 0 and levels.t.max() == pytest.approx(CLEAN_TIME)
    assert (levels.t[levels.clean] == levels.t.max()).all()
    assert 0.07 < levels.alone.float().mean() < 0.13
    # Most rows whose first chunks are both under way have chunk 1 a quarter of the steps behind, in the sampler's time.
    u = (3 * levels.t / (1 + 2 * levels.t)).sqrt()
    lag = (u[:, 0] - u[:, 1])[((u[:, :2] > 0.01) & (u[:, :2] < 0.9)).all(1)]
    assert len(lag) > 500 and ((lag - 0.25).abs() < 1e-3).float().mean() > 0.3
    earlier_is_cleaner = (levels.t[:, :-1] >= levels.t[:, 1:]).all(1)
    assert 0.7 < earlier_is_cleaner.float().mean() < 0.95
    # u of the window is the schedule's.
    steps = torch.tensor(magi(16).timesteps)
    assert torch.allclose((3 * steps / (1 + 2 * steps)).sqrt(), torch.arange(16) / 16, atol=1e-6)


def test_training_stops_saves_and_resumes(tmp_path: Path) -> None:
    recipe = replace(RECIPE, phases=(shared.Phase(1.01, 2, 2, 2, 16),), first_clips=16)
    vae = WanVAE(WanVAEConfig(dim=8)).requires_grad_(False)

    def train(steps: int, resume: bool) -> tuple[torch.nn.Module, dict[str, float]]:
        return shared.train_transformer(
            vae,
            minutes=0,
            steps=steps,
            seed=0,
            device=torch.device("cpu"),
            checkpoint=tmp_path / "magi.pt",
            resume=resume,
            say=print,
            recipe=recipe,
        )

    model, figures = train(2, resume=False)
    assert isinstance(model, MagiTransformer) and figures["steps"] == 2
    assert model.final_linear.linear.weight.abs().sum() > 0  # zero before the first step
    again, kept = train(2, resume=True)
    assert kept == figures
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


# --- weights -----------------------------------------------------------------------------------------------------


def test_weights_are_small_and_say_where_they_come_from(mini: MiniMagi) -> None:
    assert TRANSFORMER_FILE.stat().st_size < 4e6
    assert TRANSFORMER_FILE.stat().st_size + VAE_FILE.stat().st_size < 12e6
    assert sum(p.numel() for p in mini.transformer.parameters()) < 3e6
    facts = mini.provenance[TRANSFORMER_FILE.stem]
    assert {"title", "steps", "seed", "data", "date", "loss"} <= set(facts)
    assert int(facts["steps"]) > 1000 and float(facts["loss"]) < 0.3
    with safe_open(TRANSFORMER_FILE, framework="pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118


def test_sizes_fit_together(mini: MiniMagi) -> None:
    config = mini.transformer.config
    assert mini.encode_prompt("").shape[1:] == (config.text_len, config.text_dim)
    assert config.num_heads > config.kv_heads  # grouped queries, as the large model has
    assert mini.noise(2, seed=0).shape == (1, 16, 6, 8, 8)
    assert torch.equal(mini.noise(1, seed=3), mini.noise(1, seed=3))
    assert mini.settings(4).plan.max_active == mini.window_chunks
    assert text_guidance(1.0) is None


def test_same_seed_same_video(mini: MiniMagi) -> None:
    settings = mini.settings(3, steps=4)
    first, second = (generate(mini.denoiser(["a red circle"]), settings, mini.noise(3, 1)) for _ in range(2))
    other = generate(mini.denoiser(["a red circle"]), settings, mini.noise(3, 2))
    assert torch.equal(first, second) and not torch.allclose(first, other, atol=0.1)


def test_a_quick_sample_shows_what_was_asked(mini: MiniMagi) -> None:
    clips = [
        data.Clip("red", "circle", "right", 11, 20, 32),
        data.Clip("green", "square", "left", 11, 44, 32),
        data.Clip("blue", "triangle", "down", 11, 32, 20),
        data.Clip("yellow", "circle", "up", 11, 32, 44),
    ]
    videos = sample(mini, [clip.prompt for clip in clips], chunks=3, steps=16, guidance=2.0)
    assert videos.shape == (4, 3, 33, 64, 64)
    result = score(clips, videos, steps=16, guidance=2.0)
    assert result.colour >= 0.9
    assert result.direction >= 0.75
    assert result.alive >= 0.95
