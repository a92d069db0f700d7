"""The CUDA benchmark's parts at tiny size on the CPU: what they count is what the run did."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks import cuda, cuda_levers
from benchmarks.cuda_levers import Model
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.magi.config import MagiConfig
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.sparse.settings import SparseSettings
from flowcache_core.sparse.xattention import XAttention

TINY = WanConfig(dim=48, ffn_dim=64, num_layers=2, num_heads=3, text_dim=20, freq_dim=32, fps_embedding=True)
SIZES = cuda.Sizes(
    TINY, latent_height=4, latent_width=6, window_frames=6, long_frames=12, chunk_frames=2, steps=4, ar_step=1,
    computed=3, dtype=torch.float32,
)  # fmt: skip
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def figures():
    return cuda.measure(SIZES, CPU)


def test_the_published_shape_is_measured():
    sizes = cuda.Sizes()
    assert sizes.latent_height * 8 == 544 and sizes.latent_width * 8 == 960 and sizes.window_frames == 25
    with torch.device("meta"):
        parameters = sum(p.numel() for p in cuda.WanTransformer(sizes.config).parameters())
    assert parameters == pytest.approx(1.4355e9, rel=1e-4)
    # As in the published run of 50 steps 5 ticks apart: all five chunks of the window are active at once.
    assert sizes.settings(25).plan.max_active == 5 == sizes.settings(65).plan.max_active


def test_dense_and_sparse_attention_are_timed_at_the_windows_shape(figures):
    rows = figures["attention"]
    assert {row["engine"] for row in rows} == {"dense", "prediction", "gather"}
    assert [row["density"] for row in rows if row["engine"] == "gather"] == [1.0, 0.5, 0.3, 0.2, 0.1]
    assert all(row["seconds"] > 0 for row in rows)


def test_every_step_is_timed_once():
    denoiser = cuda.denoiser_of(cuda.random_model(TINY, CPU, torch.float32), CPU)
    watch = cuda.timed_run(denoiser, SIZES.settings(6), SIZES.noise(6, CPU))
    assert (len(watch.compute), len(watch.reuse), len(watch.window)) == (3 * 3, 3 * 1, 0)
    assert max(watch.contexts) == 6 * 2 * 3 and min(watch.contexts) == 2 * 2 * 3
    assert sum(watch.compute) + sum(watch.reuse) == pytest.approx(watch.seconds, rel=0.5)


def test_figures_are_of_the_same_run(figures):
    steps = figures["steps"]
    assert all(value > 0 for value in steps.values())
    assert steps["reuse_step_seconds"] < steps["compute_step_seconds"]
    assert steps["compute_step_seconds"] < steps["run_seconds"]


def test_a_budget_and_fp8_make_the_cache_smaller(figures):
    whole, budget, fp8 = (row["kv_gb"] for row in figures["memory"].values())
    assert 12 * 6 * 2 * 2 * 2 * 48 * 4 / 1e9 == pytest.approx(whole)  # tokens, K and V, branches, layers, dim, fp32
    assert budget < whole and fp8 < 0.35 * budget
    assert [row["peak_gb"] for row in figures["memory"].values()] == [None] * 3


def test_random_weights_move_the_latents():
    model = cuda.random_model(TINY, CPU, torch.float32)
    velocity = model(SIZES.noise(2, CPU), torch.tensor([500.0]), torch.ones(1, 3, 20))
    assert velocity.isfinite().all() and velocity.std() > 0.1


WAN = replace(TINY, fps_embedding=True)
SMALL = {
    "skyreels-v2-1.3b-540p": Model("skyreels-v2-1.3b-540p", "causal", {"frames": 17, "base_frames": 17, "steps": 4,
                                   "height": 64, "width": 128, "chunk_frames": 1, "ar_step": 2}, WAN),
    "magi-1-4.5b": Model("magi-1-4.5b", "vanilla", {"frames": 48, "steps": 8, "height": 64, "width": 128,
                         "chunk_frames": 2, "window_chunks": 2}, MagiConfig(48, 40, 2, 6, 2, 8, 12, text_dim=20,
                         text_len=120, freq_dim=16, bands=1)),
    "self-forcing-1.3b": Model("self-forcing-1.3b", "vanilla", {"frames": 9, "height": 64, "width": 128},
                               replace(TINY, fps_embedding=False)),
}  # fmt: skip


def test_every_published_model_has_a_small_one():
    assert set(SMALL) == {model.name for model in cuda_levers.MODELS}
    for model in cuda_levers.MODELS:  # the runs are possible at all, at full size
        assert cuda_levers.job(model.name, model.preset, KVSettings(), **model.fields).subject.windows


@pytest.mark.parametrize("name", SMALL)
def test_every_lever_runs_on_every_model(name, monkeypatch):
    # Blocks of few tokens, as the tiny videos have.
    small = SparseSettings(XAttention(block=16, stride=4), dense_chunks=1)
    monkeypatch.setattr(cuda_levers, "SparseSettings", lambda *method, **fields: small)
    told = []
    result = cuda_levers.measure(SMALL[name], CPU, told.append)
    rows = result["levers"]
    assert list(rows) == [lever for lever, _ in cuda_levers.levers()] and len(told) == len(rows)
    refused = {lever: row["refused"] for lever, row in rows.items() if "refused" in row}
    assert not refused
    assert all(row["finite"] and row["seconds"] > 0 for row in rows.values())
    plain = rows["plain"]
    assert plain["computed_steps"] == plain["total_steps"] > rows["reuse"]["computed_steps"]
    assert rows["budget"]["kv_gb"] < plain["kv_gb"] > rows["K/V in fp8"]["kv_gb"]
    assert rows["K/V on the CPU"]["kv_gb"] == plain["kv_gb"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_device_it_says_so(capsys):
    assert cuda.main([]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("cuda: no CUDA device here") and captured.out == ""
