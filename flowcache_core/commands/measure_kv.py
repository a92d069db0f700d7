"""Measure what keeping less of the history, and in fewer bits, does to a model's attention, in runs that keep all.

    python dev.py measure-kv --model mini --out profile.json
    python dev.py measure-kv --model wan --weights FILE --prompts FILE --out profile.json

The file holds, for every compressor, storage and budget, the relative squared error of every layer's attention, and
``auto`` of KV Cache Compressor chooses by it (docs/kv.md says where it is looked for). Chunks are made one after the
other, whatever the model's own plan is: so that each sees the others finished, as what is stored is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ..calibrate.bundled import BUNDLED
from ..calibrate.runs import Setup, Specimen, paired
from ..calibrate.weights import RELEASED
from ..engine import generate
from ..errors import SettingError, require, require_count, require_finite
from ..files import require_file, whole_file
from ..kv import COMPRESSORS
from ..kv.allocate import grouped, groups_of
from ..kv.layout import largest_chunk_frames
from ..kv.profile import ErrorProfile
from ..kv.recorded_errors import Candidates, Measured, MeasuringCache
from ..kv.spec import KVSpec
from ..kv.storage import STORAGES
from ..kv.storage.base import Packed, Storage
from ..plan import blockwise
from ..report.refusing import refusing
from ..sparse.assignment import assign
from .arguments import Parser, require_device
from .calibrate import specimen_of

STORED = ("plain", "int8", "int4", "int2")
CHOSEN_BY = ("sink-window", "head-wise", "participative", "density", "recent")
FIRST_SEED = 5000


def measure(of: Specimen, model: str, setup: Setup, count: int) -> ErrorProfile:
    """The profile of a model from ``count`` videos."""
    batch, own = paired(of.prompts, FIRST_SEED, count), of.settings(setup)
    chunk = largest_chunk_frames(own.plan)
    plan = blockwise(setup.chunks * chunk, chunk, setup.steps)
    settings = replace(own, plan=plan, attention="block-causal")
    at = sorted({setup.steps // 4, setup.steps // 2, setup.steps - 1})
    history, measured = setup.chunks - 1, None
    budgets = sorted({1.0, 1.5, 2.0, 2.5, *(float(n) for n in range(3, history)), float(history)})
    for first in range(0, count, of.batch):
        part = batch[first : first + of.batch]
        denoiser = of.denoiser([prompt for prompt, _ in part], setup)
        noise = torch.cat([of.noise(setup.chunks, seed) for _, seed in part])
        spec = denoiser.kv_spec(noise)
        storages = fitting(spec, chunk * spec.tokens_per_frame)
        candidates = Candidates([COMPRESSORS[name]() for name in CHOSEN_BY], storages, budgets)
        measured = measured or Measured(spec, history)
        cache = MeasuringCache(spec, plan, candidates, at, measured)
        generate(denoiser, settings, noise, cache=cache, observe=refusing(lambda event: None))
    assert measured is not None
    return measured.profile(model)


def shared_out(profile: ErrorProfile, compressor: str) -> tuple[list[float], list[float], list[float]]:
    """Mean error over layers for every share of the history that was kept: with the same share for all, and where
    layers, or groups of heads of every layer, get the best with that share as their mean."""
    rows, layers = profile.errors[compressor]["plain"], profile.sizes.layers
    shares, heads = profile.shares[-len(rows) :], len(rows[0]) // layers
    by_head = np.minimum.accumulate(np.array(rows).T.reshape(layers, heads, -1), 2)
    by_layer = by_head.sum(1)
    _, groups = grouped(by_head, groups_of(heads))
    best = [
        [assign(parts, np.tile(np.array(shares), (len(parts), 1)), share).error / layers for share in shares]
        for parts in (by_layer, groups)
    ]
    return [sum(row) / layers for row in rows], best[0], best[1]


def fitting(spec: KVSpec, chunk_tokens: int) -> list[Storage]:
    """The storages that take heads of this size."""
    found: list[Storage] = []
    for storage in (STORAGES[name]() for name in STORED):
        try:
            if isinstance(storage, Packed):
                storage.codecs(spec.head_dim, chunk_tokens)
        except SettingError:
            continue
        found.append(storage)
    return found


@torch.no_grad()
def main(argv: Sequence[str]) -> int:
    """Measure, print the mean over layers, write the file."""
    p = Parser("measure-kv", description=__doc__)
    p.add_argument("--model", default="mini", help=f"{', '.join((*BUNDLED, *RELEASED))} (default: %(default)s)")
    p.add_argument("--weights", type=Path, help="the transformer's file or folder; the bundled models have theirs")
    p.add_argument("--prompts", type=Path, help=".safetensors with encoded prompts, as calibrate takes them")
    p.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
    p.add_argument("--height", type=int, help="pixels (default: the released size)")
    p.add_argument("--width", type=int)
    p.add_argument("--chunks", type=int, default=8, help="length of the video (default: %(default)s)")
    p.add_argument("--steps", type=int, default=12, help="denoising steps of a chunk (default: %(default)s)")
    p.add_argument("--guidance", type=float, help="classifier-free guidance")
    p.add_argument("--videos", type=int, default=4, help="to measure on (default: %(default)s)")
    p.add_argument("--out", type=Path, required=True, help="where to write the profile")
    options = p.parse_args(argv)
    known = (*BUNDLED, *RELEASED)
    require(options.model in known, "model", options.model, ", ".join(known))
    require_count("chunks", options.chunks, minimum=4, maximum=64)
    require_count("steps", options.steps, minimum=2, maximum=1000)
    require_count("videos", options.videos, minimum=1, maximum=64)
    if options.guidance is not None:
        require_finite("guidance", options.guidance, minimum=0.0)
    require_device("device", options.device)
    require_file(options.out)
    options.vae, options.thorough = None, False
    of = specimen_of(options)
    given = {"chunks": options.chunks, "steps": options.steps, "guidance": options.guidance}
    setup = replace(of.default, **{name: value for name, value in given.items() if value is not None})
    profile = measure(of, options.model if options.weights is None else options.weights.stem, setup, options.videos)
    print(f"{'share kept':30}" + "".join(f"{share:8.2f}" for share in profile.shares))
    for compressor, by_storage in profile.errors.items():
        for storage in by_storage:
            shares = profile.shares[-len(by_storage[storage]) :]
            row = (profile.error(compressor, storage, share, None) for share in shares)
            gap = " " * 8 * (len(profile.shares) - len(shares))
            print(f"{compressor + ', ' + storage:30}{gap}" + "".join(f"{error:8.2%}" for error in row))
    print("\nheld as computed, the same bytes in all, shared out to layers, to groups of their heads:")
    for compressor in profile.errors:
        for title, errors in zip(("alike", "by layer", "by head"), shared_out(profile, compressor), strict=True):
            gap = " " * 8 * (len(profile.shares) - len(errors))
            print(f"{compressor + ', ' + title:30}{gap}" + "".join(f"{error:8.2%}" for error in errors))
    with whole_file(options.out) as part:
        part.write_text(profile.as_json(), encoding="utf-8")
    print(f"saved: {options.out}")
    return 0
