"""Measure what keeping less of the history, and in fewer bits, does to a model's attention, in one run that keeps all.

    python dev.py measure-kv --model mini --out profile.json

The file holds, for every compressor, storage and budget, the relative squared error of every layer's attention.
``KV Cache Compressor`` with ``auto`` chooses by it; the bundled models' files lie in ``flowcache_core/kv/profiles``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..calibrate.bundled import Mini, MiniWan, Scenes
from ..calibrate.runs import Setup, paired
from ..engine import generate
from ..errors import require, require_count
from ..files import require_file, whole_file
from ..kv import COMPRESSORS
from ..kv.profile import ErrorProfile
from ..kv.recorded_errors import Candidates, MeasuringCache
from ..kv.storage import STORAGES
from .arguments import Parser

MODELS: dict[str, type[MiniWan]] = {model.name: model for model in (Mini, Scenes)}
STORED = ("plain", "int8", "int4", "int2")
CHOSEN_BY = ("sink-window", "head-wise", "participative", "density", "recent")


def measure(model: str, chunks: int, steps: int, count: int) -> ErrorProfile:
    """The profile of a bundled model from a run of ``count`` videos at once."""
    of = MODELS[model]()
    setup = Setup(chunks=chunks, steps=steps, guidance=of.default.guidance)
    batch = paired(of.prompts, 5000, count)
    denoiser = of.denoiser([prompt for prompt, _ in batch], setup)
    settings = of.settings(setup)
    noise = torch.cat([of.noise(chunks, seed) for _, seed in batch])
    spec, history = denoiser.kv_spec(noise), chunks - 1
    budgets = sorted({1.0, 1.5, 2.0, 2.5, *(float(n) for n in range(3, history)), float(history)})
    candidates = Candidates([COMPRESSORS[name]() for name in CHOSEN_BY], [STORAGES[name]() for name in STORED], budgets)
    at = sorted({steps // 4, steps // 2, steps - 1})
    cache = MeasuringCache(spec, settings.plan, candidates, at)
    generate(denoiser, settings, noise, cache=cache)
    return cache.profile(model, spec)


def main(argv: Sequence[str]) -> int:
    """Measure, print the mean over layers, write the file."""
    p = Parser("measure-kv", description=__doc__)
    p.add_argument("--model", default="mini", help=f"a bundled model: {', '.join(MODELS)} (default: %(default)s)")
    p.add_argument("--chunks", type=int, default=8, help="length of the video (default: %(default)s)")
    p.add_argument("--steps", type=int, default=12, help="denoising steps of a chunk (default: %(default)s)")
    p.add_argument("--videos", type=int, default=4, help="made together (default: %(default)s)")
    p.add_argument("--out", type=Path, required=True, help="where to write the profile")
    options = p.parse_args(argv)
    require(options.model in MODELS, "model", options.model, ", ".join(MODELS))
    require_count("chunks", options.chunks, minimum=4, maximum=64)
    require_count("steps", options.steps, minimum=2, maximum=1000)
    require_count("videos", options.videos, minimum=1, maximum=64)
    require_file(options.out)
    torch.set_grad_enabled(False)
    profile = measure(options.model, options.chunks, options.steps, options.videos)
    print(f"{'share kept':30}" + "".join(f"{share:8.2f}" for share in profile.shares))
    for compressor, by_storage in profile.errors.items():
        for storage in by_storage:
            known = profile.shares[-len(by_storage[storage]) :]
            row = (profile.error(compressor, storage, share, None) for share in known)
            gap = " " * 8 * (len(profile.shares) - len(known))
            print(f"{compressor + ', ' + storage:30}{gap}" + "".join(f"{error:8.2%}" for error in row))
    with whole_file(options.out) as part:
        part.write_text(profile.as_json(), encoding="utf-8")
    print(f"saved: {options.out}")
    return 0
