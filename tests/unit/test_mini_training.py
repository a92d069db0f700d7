"""What the mini model's training relies on: noise patterns, the optimizer, a run that goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowcache_core.mini import transformer_training as training
from flowcache_core.mini.noise_levels import chunk_sigmas, shifted
from flowcache_core.mini.optim import Muon, orthogonal
from flowcache_core.mini.vae_training import NormalisedVAE
from flowcache_core.models.wan.vae import WanVAE, WanVAEConfig


def test_noise_levels_cover_the_samplers_patterns() -> None:
    sigma = chunk_sigmas(4000, 4, torch.Generator().manual_seed(0))
    assert sigma.shape == (4000, 4)
    assert sigma.min() == 0 and sigma.max() == 1
    noisy = sigma > 0
    # The last chunk of a row with a clean history always has noise, and mostly so has the first.
    assert noisy.any(1).float().mean() > 0.9
    clean_then_one_level = (sigma[:, 1:] >= sigma[:, :-1]).all(1)
    assert 0.7 < clean_then_one_level.float().mean() < 0.9
    history = ((sigma[:, 0] == 0) & noisy[:, 3]).float().mean()
    assert 0.3 < history < 0.7


def test_shift_keeps_the_ends() -> None:
    assert shifted(torch.tensor([0.0, 0.5, 1.0])).tolist() == [0.0, 0.75, 1.0]


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32), (2, 32, 8)])
def test_orthogonal_has_singular_values_near_one(shape: tuple[int, ...]) -> None:
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.3 and values.max() < 1.3


def test_muon_descends() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 8))
    muon = Muon([weight])
    first = weight.detach().square().sum()
    for _ in range(100):
        weight.grad = 2 * weight.detach()
        muon.step(0.02)
    assert weight.square().sum() < 0.5 * first


def test_exported_vae_is_the_trained_one_under_official_constants() -> None:
    torch.manual_seed(0)
    model = NormalisedVAE()
    video = torch.rand(2, 3, 5, 24, 24) * 2 - 1
    with torch.no_grad():
        model.norm.momentum = 0.5  # instead of hundreds of steps
        for _ in range(6):
            model.train()(video)
        model.eval()
        vae = model.export()
        expected = model(video).clamp(-1, 1)
        latents = vae.encode(video)
    assert torch.allclose(vae.decode(latents), expected, atol=1e-3)
    assert latents.mean((0, 2, 3, 4)).abs().max() < 0.5


def test_training_stops_saves_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "PHASES", (training.Phase(1.01, 1, 2, 1, 16),))
    monkeypatch.setattr(training, "FIRST_CLIPS", 16)
    vae = WanVAE(WanVAEConfig(dim=8)).requires_grad_(False)
    said: list[str] = []

    def train(steps: int, resume: bool) -> dict[str, float]:
        checkpoint = tmp_path / "transformer.pt"
        shared = {"seed": 0, "device": torch.device("cpu"), "checkpoint": checkpoint, "say": said.append}
        return training.train_transformer(vae, minutes=0, steps=steps, resume=resume, **shared)[1]

    first = train(2, resume=False)
    assert first["steps"] == 2 and 0.5 < first["loss"] < 5
    files = sorted(path.name for path in (tmp_path / "clips").rglob("*.pt"))
    assert files == ["clips-3-0000.pt"]
    assert train(3, resume=True)["steps"] == 3
    assert train(3, resume=True)["steps"] == 3
