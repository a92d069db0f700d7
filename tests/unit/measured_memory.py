"""Run by test_dry_run in a process of its own: the resident memory that one run on a bundled model takes, in bytes.

python measured_memory.py {mini,scenes} CHUNKS
"""

from __future__ import annotations

import gc
import re
import sys
from pathlib import Path

import torch

from flowcache_core import mini
from flowcache_core.bundled import load_bundled
from flowcache_core.dry_run.run import Subject
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.plan import staggered
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.schedule import shifted

SIDE = 32  # of the latents: larger than the models were trained for, so that tensors outweigh what a process needs


def settings(chunks: int, chunk_frames: int) -> EngineSettings:
    return EngineSettings(
        staggered(chunks * chunk_frames, chunk_frames, 4, 1),
        shifted(4, 3.0),
        policy=StaticSchedule(warmup_steps=1, computed=(0, 2)),
        kv=KVSettings(budget=chunks / 2, compressor=Recent()),
    )


def denoiser(model: mini.MiniModel) -> WanDenoiser:
    return WanDenoiser(model.transformer, {0: (model.encode_prompt("a"), model.encode_prompt(""))}, 2.0)


def subject(name: str, chunks: int) -> Subject:
    config, text = load_bundled(name).transformer.config, mini.encode_prompt("").shape

    def build(device: str) -> tuple[WanTransformer, WanDenoiser]:
        with torch.device(device):
            transformer = WanTransformer(config).eval().requires_grad_(False)
            return transformer, WanDenoiser(transformer, {0: (torch.empty(text), torch.empty(text))}, 2.0)

    return Subject(build, (settings(chunks, 3),), SIDE, SIDE)


def resident(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]


def measured(name: str, chunks: int) -> int:
    """By how much a run with its model rises above what the process held before: libraries are warm by then."""
    warm = load_bundled(name)
    small = torch.zeros(1, 16, 6, 8, 8)
    generate(denoiser(warm), settings(2, 3), small)
    del warm
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    model = load_bundled(name)
    frames = chunks * model.chunk_frames
    noise = torch.randn(1, 16, frames, SIDE, SIDE)
    generate(denoiser(model), settings(chunks, model.chunk_frames), noise)
    return resident("VmHWM") - before


if __name__ == "__main__":
    print(measured(sys.argv[1], int(sys.argv[2])))
