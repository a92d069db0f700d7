"""Ranks on two real GPUs over NCCL; one line without them."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

if torch.cuda.device_count() < 2:
    pytest.skip(f"NCCL between ranks needs two GPUs, here are {torch.cuda.device_count()}", allow_module_level=True)


from flowcache_core import mini
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.kv.settings import KVSettings
from flowcache_core.noise import host_noise
from flowcache_core.parallel.asked import Begin, ModelFile, WanRun, Window
from flowcache_core.parallel.errors import RankError
from flowcache_core.parallel.session import Session
from flowcache_core.parallel.shape import MeshShape
from flowcache_core.plan import staggered
from flowcache_core.report.events import StepTaken
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.schedule import shifted


def asked_of(model) -> tuple[Window, ModelFile]:
    settings = EngineSettings(
        staggered(12, 3, 8, 2), shifted(8, model.shift), policy=Chunkwise(warmup_steps=2, threshold=0.2),
        kv=KVSettings(budget=1.0),
    )  # fmt: skip
    heads = model.transformer.config.num_heads
    run = WanRun({0: [model.encode_prompt(text) for text in ("a red circle moving right", "")]}, 2.0)
    file = ModelFile("wan", str(mini.TRANSFORMER_FILE), heads, heads, torch.float32)
    return Window(run, settings, model.noise(4, 1).cpu(), seed=5), file


@pytest.mark.parametrize("shape", [MeshShape(2, 1), MeshShape(1, 2)], ids=str)
def test_a_run_over_nccl_is_the_run_on_one_gpu(shape):
    """To rounding: a card may pick other kernels for a batch of one."""
    model = mini.load_mini("cuda")
    asked, file = asked_of(model)
    with Session(Begin(file, shape, "cuda", 120.0)) as ranks:
        there = ranks.run(asked, lambda told: None)
    denoiser = asked.run.denoiser(model.transformer, torch.device("cuda"))
    here = generate(denoiser, asked.settings, model.noise(4, 1), noise_source=host_noise(5)).cpu()
    assert (there - here).abs().max() <= 1e-3 * here.abs().max()


@pytest.mark.parametrize(
    "number, said",
    [(signal.SIGKILL, r"rank 1 ended \(SIGKILL\)"), (signal.SIGSTOP, "rank 1 did not answer within 30 s")],
)
def test_a_rank_that_dies_or_hangs_over_nccl_ends_the_run(number, said):
    asked, file = asked_of(mini.load_mini())
    begun = time.monotonic()
    with (
        pytest.raises(RankError, match=said),
        Session(Begin(file, MeshShape(1, 2), "cuda", 30.0)) as ranks,
    ):
        processes, hit = ranks.ranks.processes, []

        def told(one):
            if isinstance(one.event, StepTaken) and not hit:
                hit.append(os.kill(processes[1].pid, number))

        ranks.run(asked, told)
    assert all(process.poll() is not None for process in processes)
    assert time.monotonic() - begun < 120  # both have started within it
