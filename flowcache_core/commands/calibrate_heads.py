"""``python dev.py calibrate-heads``: how much sparsity every attention head of a model bears, kept in a preset.

Runs a video or a few with all attention dense. At some steps of each it asks the model again, one head at a time at one
share p of its attention mass, and measures how far the velocity is off. From that follows p per head for any density.
What is measured is kept at once; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..calibrate.bundled import BUNDLED
from ..calibrate.heads import HeadCalibration, require_reachable, spread_places, subject_of
from ..calibrate.runs import paired
from ..calibrate.weights import RELEASED
from ..errors import SettingError, require, require_count, require_finite
from ..files import only_writer, require_file, write_json
from ..presets import SCHEMA, read_presets
from ..presets.sparse import sparse_row
from ..report.progress import time_left
from ..sparse.calibrated import Calibrated
from ..sparse.head_budget import predicted
from ..sparse.head_errors import CANDIDATES, HeadErrors
from ..sparse.head_table import HeadTable
from ..sparse.settings import SparseSettings
from ..sparse.xattention import require_p
from .arguments import Parser, require_device
from .calibrate import specimen_of
from .calibrate_call import CALIBRATION_SEED

BLOCK, STRIDE = 128, 16
BUNDLED_BLOCK, BUNDLED_STRIDE = 16, 4  # a latent frame of the mini models has 16 tokens, one of mini scenes 64


def parser() -> argparse.ArgumentParser:
    p = Parser("calibrate-heads", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--model", required=True, help=", ".join((*BUNDLED, *RELEASED)))
    p.add_argument("--weights", type=Path, help="the transformer's file or folder; the bundled models have theirs")
    p.add_argument("--prompts", type=Path, help=".safetensors with encoded prompts, as calibrate takes them")
    p.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
    p.add_argument("--height", type=int, help="pixels (default: the released size)")
    p.add_argument("--width", type=int)
    p.add_argument("--chunks", type=int, default=8, help="length of the videos (default: %(default)s)")
    p.add_argument("--steps", type=int, default=20, help="denoising steps per chunk (default: %(default)s)")
    p.add_argument("--guidance", type=float, help="classifier-free guidance")
    p.add_argument("--videos", type=int, default=6, help="videos to measure on (default: %(default)s)")
    p.add_argument("--samples", type=int, default=4, help="steps of each at which is measured (default: %(default)s)")
    p.add_argument("--block", type=int, help=f"tokens of a block ({BLOCK}; bundled models {BUNDLED_BLOCK})")
    p.add_argument("--stride", type=int, help=f"tokens a score stands for ({STRIDE}; bundled models {BUNDLED_STRIDE})")
    p.add_argument("--candidates", type=float, nargs="+", default=list(CANDIDATES), help="shares p that are measured")
    p.add_argument("--dense-chunks", type=int, default=2, help="contexts that stay dense (default: %(default)s)")
    p.add_argument("--density", type=float, default=0.5, help="what the row recommends (default: %(default)s)")
    p.add_argument("--dry-run", action="store_true", help="say how many forwards it takes, and stop")
    p.add_argument("--name", default="per-head", help="name of the row (default: %(default)s)")
    p.add_argument("--out", type=Path, default=Path("out/heads.json"), help="file to write (default: %(default)s)")
    return p


def main(argv: Sequence[str]) -> int:
    """Measure what is missing and write the row. SettingError for what the user can put right."""
    options = parser().parse_args(argv)
    calibration, evidence = begin(options)
    pairs = paired(calibration.specimen.prompts, CALIBRATION_SEED, options.videos)
    total = calibration.total(len(pairs))
    if options.dry_run:
        known = calibration.known(pairs)
        print(
            f"{total} forwards of a chunk, {known} of them done in earlier calls, and {len(pairs)} dense runs at most"
        )
        return 0
    begun = time.monotonic()

    def told(done: int, of: int) -> None:
        print(f"{done} of {of} measured, {time_left(done, of, time.monotonic() - begun)} left", file=sys.stderr)

    calibration.told = told
    calibration.run(pairs)
    table = HeadTable.of(calibration.errors)
    method = Calibrated(density=options.density, table=table)
    engine = calibration.specimen.settings(calibration.setup)
    sparse = SparseSettings(method, options.dense_chunks)
    try:
        sparse.settled(engine.plan, 1, engine.kv, engine.recache)
    except SettingError as error:
        raise SettingError(error.field, error.value, f"{error.accepted}; {calibration.path} keeps it all") from error
    text = f"p per head by measured error: {table.subject.layers} layers of {table.subject.heads} heads."
    evidence["samples"] = [[one.seed, one.chunk, one.step] for one in calibration.errors.complete]
    evidence["minutes"] = round((time.monotonic() - begun) / 60, 1)
    evidence["predicted_error"] = predicted(table)
    path = write(options.out, options.name, sparse_row(text, method, evidence))
    print("density   one p for all: error   p per head: error (of one step, heads added up)")
    for row in evidence["predicted_error"]:
        print(f"{row['density']:7.3f}   p {row['p']:<12g} {row['shared']:.2e}   {row['per_head']:.2e}")
    print(f"measurements: {calibration.path}\nwritten: {path}")
    return 0


def begin(options: argparse.Namespace) -> tuple[HeadCalibration, dict[str, Any]]:
    known = (*BUNDLED, *RELEASED)
    require(options.model in known, "model", options.model, ", ".join(known))
    require_count("videos", options.videos, minimum=1, maximum=1000)
    require_count("samples", options.samples, minimum=1, maximum=1000)
    require_count("chunks", options.chunks, minimum=1, maximum=1000)
    require_count("steps", options.steps, minimum=1, maximum=1000)
    require_count("dense_chunks", options.dense_chunks, minimum=0, maximum=1000)
    require_p("density", options.density)
    if options.guidance is not None:
        require_finite("guidance", options.guidance, minimum=0.0)
    require_device("device", options.device)
    options.vae, options.thorough = None, False
    require_file(options.out)
    if options.out.exists():
        read_presets(options.out)
    bundled = options.model in BUNDLED
    block = options.block or (BUNDLED_BLOCK if bundled else BLOCK)
    stride = options.stride or (BUNDLED_STRIDE if bundled else STRIDE)
    specimen = specimen_of(options)
    given = {"chunks": options.chunks, "steps": options.steps, "guidance": options.guidance}
    setup = replace(specimen.default, **{key: value for key, value in given.items() if value is not None})
    engine, sizes = specimen.settings(setup), (options.dense_chunks, options.samples)
    places = [spread_places(engine, *sizes, video, options.videos) for video in range(options.videos)]
    subject, tokens = subject_of(specimen, setup, block, stride, options.candidates)
    kept = options.out.with_suffix(".heads.json")
    pairs = paired(specimen.prompts, CALIBRATION_SEED, options.videos)
    evidence = {
        "chunks": setup.chunks,
        "steps": setup.steps,
        "guidance": setup.guidance,
        "plan": setup.name,
        "videos": [f"{prompt}, seed {seed}" for prompt, seed in pairs],
        "dense_chunks": options.dense_chunks,
    }
    require_reachable(options.density, engine, options.dense_chunks, subject, tokens)
    made_with = {
        "plan": setup.name,
        "steps": setup.steps,
        "guidance": setup.guidance,
        "chunk_tokens": tokens,
        "prompts": specimen.prompts_sha256,
    }
    errors = HeadErrors.resume(kept, subject, made_with)
    return HeadCalibration(specimen, setup, errors, places, kept), evidence


def write(path: Path, name: str, row: dict[str, Any]) -> Path:
    """Into the file's ``sparse``; what else is there stays."""
    with only_writer(path.parent):
        content: dict[str, Any] = read_presets(path) if path.is_file() else {"schema": SCHEMA, "presets": {}}
        content["sparse"] = {**content.get("sparse", {}), name: row}
        write_json(path, content)
    return path
