"""``python dev.py calibrate``: measure a model once, write a preset with the evidence it rests on.

What is measured on the calibration pairs proposes schedules and sorts out the worst; videos of other seeds decide
between the rest and give the quality the preset promises.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..calibrate.tables import Tables, calibrated, even, splits
from ..engine import EngineSettings, generate
from ..errors import SettingError, require, require_count, require_finite
from ..files import only_writer, require_file, write_json
from ..mini import TRANSFORMER_FILE, MiniModel, load_mini
from ..models.wan.denoiser import WanDenoiser
from ..plan.blockwise import blockwise
from ..presets import SCHEMA, read_presets
from ..report.quality import compare
from ..report.refusing import refusing
from ..report.video import pixels
from ..reuse.base import ReusePolicy
from ..reuse.forecast import Forecast
from ..reuse.never import Never
from ..reuse.quantity import Quantity, Velocity
from ..reuse.schedule import StaticSchedule
from ..schedule import shifted
from ..solvers import SOLVERS
from .arguments import NAME, Parser

PROMPTS = tuple(f"a {colour} {shape} moving {way}" for colour, shape, way in (
    ("blue", "circle", "left"), ("white", "square", "down"), ("red", "triangle", "right"), ("purple", "circle", "up"),
    ("yellow", "square", "right"), ("green", "triangle", "down"), ("white", "circle", "left"), ("blue", "square", "up"),
))  # fmt: skip
CALIBRATION_SEED, DECIDING_SEED = 5000, 7000
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
FORECAST = Forecast(1, correction=2)
CHUNKS = 4
FINALISTS = 3


def parser() -> argparse.ArgumentParser:
    p = Parser("calibrate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--model", required=True, help="mini")
    p.add_argument("--steps", type=int, default=50, help="denoising steps per chunk (default: 50)")
    p.add_argument("--guidance", type=float, default=3.0, help="classifier-free guidance (default: 3)")
    p.add_argument("--solver", default="euler", help="euler or unipc (default: euler)")
    target = p.add_mutually_exclusive_group(required=True)
    target.add_argument("--target", type=float, help="share of the steps to compute, such as 0.5")
    target.add_argument("--target-psnr", type=float, help="dB against the uncached run, median of the deciding videos")
    target.add_argument("--target-seconds", type=float, help="seconds per chunk on this machine")
    target.add_argument("--ship", action="store_true", help="write the model's own presets: slow, balanced, fast")
    p.add_argument("--pairs", type=int, default=6, help="prompt-seed pairs to calibrate on; twice as many decide")
    p.add_argument("--name", default="calibrated", help="name of the preset (default: calibrated)")
    p.add_argument("--out", type=Path, default=Path("out/calibrated.json"), help="file to write (default: %(default)s)")
    return p


@dataclass(frozen=True)
class Point:
    """One schedule on the quality curve. psnr: median over the deciding pairs; psnr_mean decides between proposals."""

    policy: StaticSchedule
    psnr: float
    psnr_mean: float
    psnr_p10: float
    seconds_per_chunk: float

    @property
    def total(self) -> int:
        """Computed steps of a video of ``CHUNKS`` chunks."""
        return len(self.policy.first) + (CHUNKS - 1) * len(self.policy.computed)

    def row(self, steps: int) -> dict[str, Any]:
        return {
            "share": self.total / (CHUNKS * steps),
            "first_share": len(self.policy.first) / steps,
            "later_share": len(self.policy.computed) / steps,
            "computed": list(self.policy.computed),
            "first": list(self.policy.first),
            "psnr": round(self.psnr, 2),
            "psnr_p10": round(self.psnr_p10, 2),
        }

    def settings(self) -> dict[str, Any]:
        """The policy as a preset's row states it."""
        first, computed = list(self.policy.first), list(self.policy.computed)
        return {"name": "schedule", "warmup_steps": 1, "first": first, "computed": computed, "together": True}


@dataclass
class Bench:
    """Runs of the mini model over a fixed batch of pairs."""

    mini: MiniModel
    steps: int
    guidance: float
    solver: str
    first_seed: int
    count: int

    def run(self, policy: ReusePolicy, quantity: Quantity | None = None) -> Tensor:
        chunk = self.mini.chunk_frames
        settings = EngineSettings(
            plan=blockwise(CHUNKS * chunk, chunk, self.steps),
            schedule=shifted(self.steps, self.mini.shift),
            solver=SOLVERS[self.solver](),
            policy=policy,
            quantity=quantity or Velocity(),
            clean_pass=True,
        )
        prompts = [PROMPTS[(self.first_seed + i) % len(PROMPTS)] for i in range(self.count)]
        cond = torch.cat([self.mini.encode_prompt(prompt) for prompt in prompts])
        uncond = self.mini.encode_prompt("").expand_as(cond)
        noise = torch.cat([self.mini.noise(CHUNKS, self.first_seed + i) for i in range(self.count)])
        denoiser = WanDenoiser(self.mini.transformer, {0: (cond, uncond)}, self.guidance)
        return generate(denoiser, settings, noise, observe=refusing())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Videos ``[B, 3, T, H, W]`` in -1..1; a few at a time."""
        decode: Callable[[Tensor], Tensor] = self.mini.vae.decode
        return torch.cat([decode(part) for part in latents.split(4)])

    def videos(self, latents: Tensor) -> list[Tensor]:
        clips = self.decode(latents).movedim(1, 4)
        return list(pixels(clips))

    @cached_property
    def reference(self) -> list[Tensor]:
        """The uncached videos."""
        return self.videos(self.run(Never()))

    def measure(self, policy: StaticSchedule) -> Point:
        begun = time.perf_counter()
        latents = self.run(policy, FORECAST)
        seconds = (time.perf_counter() - begun) / (CHUNKS * self.count)
        made = zip(self.videos(latents), self.reference, strict=True)
        psnr = sorted(compare(video, reference).psnr for video, reference in made)
        low = statistics.quantiles(psnr, n=10, method="inclusive")[0]
        return Point(policy, statistics.median(psnr), statistics.fmean(psnr), low, seconds)


@dataclass
class Selection:
    """Chooses between proposals for one number of computed steps, on two sets of videos."""

    tables: Tables
    sorting: Bench
    deciding: Bench

    def best(self, total: int) -> Point:
        """Of all ways to compute ``total`` steps, the one whose videos are nearest to the uncached ones."""
        steps = self.sorting.steps
        ways = splits(total, CHUNKS, steps)
        proposed = dict.fromkeys([*map(self.tables.policy, ways), *(even(way, steps) for way in ways)])
        sorted_out = sorted(map(self.sorting.measure, proposed), key=lambda point: -point.psnr_mean)
        finals = (self.deciding.measure(point.policy) for point in sorted_out[:FINALISTS])
        return max(finals, key=lambda point: point.psnr_mean)


def totals(steps: int, shares: Sequence[float]) -> list[int]:
    """Computed steps in all at these shares, at least two a chunk."""
    return sorted({min(CHUNKS * steps, max(2 * CHUNKS, round(share * CHUNKS * steps))) for share in shares})


def choose(options: argparse.Namespace, curve: Sequence[Point], measure: Callable[[int], Point]) -> tuple[Point, str]:
    """The point that meets the target, and one sentence; when none does, the nearest and what it reaches."""
    if options.target is not None:
        point = measure(totals(options.steps, [options.target])[0])
        return point, f"{steps_of(point, options.steps)}: {point.psnr:.1f} dB"
    if options.target_psnr is not None:
        fit = [point for point in curve if point.psnr >= options.target_psnr]
        if fit:
            point = min(fit, key=lambda p: p.total)
            return point, f"{point.psnr:.1f} dB with {steps_of(point, options.steps)}"
        point = max(curve, key=lambda p: p.psnr)
        return point, f"{options.target_psnr:g} dB cannot be met; the nearest is {point.psnr:.1f} dB"
    fit = [point for point in curve if point.seconds_per_chunk <= options.target_seconds]
    if fit:
        point = max(fit, key=lambda p: p.psnr)
        return point, f"{point.seconds_per_chunk:.2f} s per chunk: {point.psnr:.1f} dB"
    point = min(curve, key=lambda p: p.seconds_per_chunk)
    return (
        point,
        f"{options.target_seconds:g} s cannot be met; the nearest is {point.seconds_per_chunk:.2f} s per chunk",
    )


def steps_of(point: Point, steps: int) -> str:
    first, later = len(point.policy.first), len(point.policy.computed)
    return f"{first} of {steps} steps computed in the first chunk and {later} in every other"


def entry(
    options: argparse.Namespace, mini: MiniModel, point: Point, curve: Sequence[Point], text: str
) -> dict[str, Any]:
    """A preset's row with its requirements and evidence."""
    return {
        "text": text,
        "policy": point.settings(),
        "quantity": {"name": "forecast", "order": FORECAST.order, "correction": FORECAST.correction},
        "computed_steps": len(point.policy.computed),
        "requires": {"steps": options.steps, "shift": mini.shift},
        "evidence": {
            "model_sha256": hashlib.sha256(TRANSFORMER_FILE.read_bytes()).hexdigest(),
            "solver": options.solver,
            "guidance": options.guidance,
            "chunks": CHUNKS,
            "prompts": list(PROMPTS),
            "calibration_seeds": [CALIBRATION_SEED, CALIBRATION_SEED + options.pairs - 1],
            "deciding_seeds": [DECIDING_SEED, DECIDING_SEED + 2 * options.pairs - 1],
            "curve": [one.row(options.steps) for one in curve],
        },
    }


def check(options: argparse.Namespace) -> None:
    require(options.model == "mini", "model", options.model, "mini (other models need their weights at hand)")
    require_count("steps", options.steps, minimum=6, maximum=200)
    require_count("pairs", options.pairs, minimum=2, maximum=len(PROMPTS))
    plain = 0 < len(options.name) <= NAME and options.name.isprintable() and not set(options.name) & set("/\\")
    require(plain, "name", options.name, f"a name of at most {NAME} characters without slashes")
    require_finite("guidance", options.guidance, minimum=0.0)
    require(options.solver in ("euler", "unipc"), "solver", options.solver, "euler, unipc")
    if options.target is not None:
        require_finite("target", options.target, minimum=2 / options.steps, maximum=1.0)
    for name in ("target_psnr", "target_seconds"):
        if getattr(options, name) is not None:
            require_finite(name, getattr(options, name), minimum=0.0)
    require(
        importlib.util.find_spec("torchmetrics") is not None, "calibrate", "no torchmetrics", "pip install torchmetrics"
    )
    require_file(options.out)
    if options.out.exists():
        read_presets(options.out)  # its rows stay beside the new one


SHIPPED = {"slow": 0.5, "balanced": 0.3, "fast": 0.2}


def shipped_name(name: str, steps: int) -> str:
    """The presets for 50 steps have the plain names."""
    return name if steps == 50 else f"{name}-{steps}"


def main(argv: Sequence[str]) -> int:
    """Calibrate and write the preset. Raises SettingError for what the user can put right."""
    options = parser().parse_args(argv)
    check(options)
    mini = load_mini()
    common = (mini, options.steps, options.guidance, options.solver)
    print(f"measuring {options.pairs} videos of {CHUNKS} chunks, {options.steps} steps ...", flush=True)
    sorting = Bench(*common, CALIBRATION_SEED, options.pairs)
    sigmas = shifted(options.steps, mini.shift).sigmas
    tables = calibrated(lambda policy: sorting.decode(sorting.run(policy)), sigmas, FORECAST)
    selection = Selection(tables, sorting, Bench(*common, DECIDING_SEED, 2 * options.pairs))
    curve: list[Point] = []
    for total in totals(options.steps, SHARES):
        curve.append(selection.best(total))
        share, psnr = total / (CHUNKS * options.steps), curve[-1].psnr
        print(f"  {share:5.0%}  {psnr:6.2f} dB, {steps_of(curve[-1], options.steps)}", flush=True)

    def measure(total: int) -> Point:
        known = next((point for point in curve if point.total == total), None)
        return known or selection.best(total)

    if options.ship:
        rows = {}
        for name, share in SHIPPED.items():
            point = measure(totals(options.steps, [share])[0])
            text = f"Calibrated: {steps_of(point, options.steps)}; the others are forecast."
            rows[shipped_name(name, options.steps)] = entry(options, mini, point, curve, text)
        print(f"\nwritten: {keep(options.out, rows)}")
        return 0
    point, outcome = choose(options, curve, measure)
    text = f"Calibrated: {outcome}."
    path = keep(options.out, {options.name: entry(options, mini, point, curve, text)})
    print(f"\n{outcome}\nwritten: {path}")
    return 0


def keep(path: Path, rows: dict[str, Any]) -> Path:
    """:func:`write`; where that fails after all, the rows are printed, so that an hour's work is not lost."""
    try:
        return write(path, rows)
    except SettingError:
        print(json.dumps({"schema": SCHEMA, "presets": rows}))
        raise


def write(path: Path, rows: dict[str, Any]) -> Path:
    """The presets as a file of the form of presets/*.json; rows of other names that are there already stay."""
    with only_writer(path.parent):  # of two calibrations into one file neither loses its rows
        content: dict[str, Any] = read_presets(path) if path.is_file() else {"schema": SCHEMA, "presets": {}}
        content["presets"] = {**content["presets"], **rows}
        write_json(path, content)
    return path
