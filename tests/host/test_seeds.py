"""The seed decides what is drawn while the sampler runs, in every chunk and every window: the host's rule and ours."""

from __future__ import annotations

import pytest
import torch
from hostkit import BLOCKWISE, STAGGERED, hosts, latent, load, module, ours, sample

WINDOWS = {**STAGGERED, "solver": "renoise", "window_frames": 6, "overlap_frames": 2}


@pytest.fixture(scope="module")
def model():
    return load()


def fixed(seed, length):
    """Noise to start from that is the same for all seeds."""
    shape = latent(length)["samples"].shape
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return type("Fixed", (), {"seed": seed, "generate_noise": lambda self, given: noise})()


@pytest.mark.parametrize(
    ("sampler", "length", "chunk"),
    [(ours, 45, 3), (hosts, 45, 3), (lambda: ours({**BLOCKWISE, "chunk_frames": 2}), 45, 2),
     (lambda: ours(WINDOWS), 61, 2)],
    ids=["ours", "the host's", "chunks of 2", "windows"],
)  # fmt: skip
def test_every_chunk_depends_on_the_seed(model, sampler, length, chunk):
    one, other, again = (
        sample(model, sampler(), start=latent(length), noise=fixed(seed, length))[0] for seed in (3, 4, 3)
    )
    assert torch.equal(one, again)
    for first in range(0, one.shape[2], chunk):
        assert not torch.equal(one[:, :, first : first + chunk], other[:, :, first : first + chunk]), first


def test_every_window_draws_by_the_seed_and_apart_from_the_others(model, monkeypatch):
    """Windows follow from the end of the one before, so their latents alone do not show what was drawn."""
    sampling, seeds = module("nodes.adapters.wan.sampling"), []
    original = sampling.host_noise
    monkeypatch.setattr(sampling, "host_noise", lambda seed, *rest: seeds.append(seed) or original(seed, *rest))
    for seed in (3, 4):
        sample(model, ours(WINDOWS), start=latent(61), noise=fixed(seed, 61))
    assert len(seeds) == len(set(seeds)) > 4 and seeds[0] == 3
