"""``python dev.py calibrate``: measure a model once, write a preset with the evidence it rests on.

What is measured on the calibration pairs proposes schedules; videos of other seeds decide between them and give the
quality the preset promises.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine import EngineSettings, generate
from ..errors import require, require_count, require_finite
from ..mini import TRANSFORMER_FILE, MiniModel, load_mini
from ..models.wan_denoiser import WanDenoiser
from ..plan.blockwise import blockwise
from ..presets import SCHEMA, read_presets
from ..report.files import require_folder, whole_file
from ..report.quality import compare
from ..reuse.base import ReusePolicy
from ..reuse.forecast import Forecast
from ..reuse.never import Never
from ..reuse.quantity import Quantity, Velocity
from ..reuse.schedule import StaticSchedule
from ..schedule import shifted
from ..solvers import SOLVERS
from .gram import Watch, mean_gram
from .search import Found, best_schedules
from .sensitivity import reach

PROMPTS = tuple(f"a {colour} {shape} moving {way}" for colour, shape, way in (
    ("blue", "circle", "left"), ("white", "square", "down"), ("red", "triangle", "right"), ("purple", "circle", "up"),
    ("yellow", "square", "right"), ("green", "triangle", "down"), ("white", "circle", "left"), ("blue", "square", "up"),
))  # fmt: skip
CALIBRATION_SEED, DECIDING_SEED = 5000, 7000
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
FORECASTS = (Forecast(1, correction=2), Forecast(2, correction=2))
CHUNKS = 3


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("calibrate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
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

    computed: tuple[int, ...]
    forecast: Forecast
    psnr: float
    psnr_mean: float
    psnr_p10: float
    seconds_per_chunk: float

    def row(self, steps: int) -> dict[str, Any]:
        return {
            "share": len(self.computed) / steps,
            "computed": list(self.computed),
            "order": self.forecast.order,
            "correction": self.forecast.correction,
            "psnr": round(self.psnr, 2),
            "psnr_p10": round(self.psnr_p10, 2),
        }

    def policy(self) -> dict[str, Any]:
        return {"name": "schedule", "warmup_steps": 1, "computed": list(self.computed), "together": True}

    def quantity(self) -> dict[str, Any]:
        return {"name": "forecast", "order": self.forecast.order, "correction": self.forecast.correction}


@dataclass
class Bench:
    """Runs of the mini model over a fixed batch of pairs."""

    mini: MiniModel
    steps: int
    guidance: float
    solver: str
    first_seed: int
    count: int
    base: Tensor = field(init=False)
    reference: list[Tensor] = field(init=False)

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
        return generate(denoiser, settings, noise)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Videos ``[B, 3, T, H, W]`` in -1..1; a few at a time."""
        decode: Callable[[Tensor], Tensor] = self.mini.vae.decode
        return torch.cat([decode(part) for part in latents.split(4)])

    def videos(self, latents: Tensor) -> list[Tensor]:
        clips = self.decode(latents).movedim(1, 4)
        return list(((clips + 1) * 127.5).round().clamp(0, 255).byte())

    def measure(self, found: Found, forecast: Forecast) -> Point:
        begun = time.perf_counter()
        latents = self.run(StaticSchedule(computed=found.computed), forecast)
        seconds = (time.perf_counter() - begun) / (CHUNKS * self.count)
        made = zip(self.videos(latents), self.reference, strict=True)
        psnr = sorted(compare(video, reference).psnr for video, reference in made)
        low = statistics.quantiles(psnr, n=10, method="inclusive")[0]
        return Point(found.computed, forecast, statistics.median(psnr), statistics.fmean(psnr), low, seconds)

    def best(self, proposed: dict[Forecast, dict[int, Found]], count: int) -> Point:
        """Of the proposals with ``count`` computed steps, the one whose videos are nearest to the uncached ones."""
        points = (self.measure(found[count], forecast) for forecast, found in proposed.items())
        return max(points, key=lambda point: point.psnr_mean)


def propose(bench: Bench) -> dict[Forecast, dict[int, Found]]:
    """Forecast -> count -> schedule, from what is measured on the calibration pairs."""
    watch = Watch()
    base = bench.decode(bench.run(watch))
    gram = mean_gram(watch.grams).numpy()
    sigmas = shifted(bench.steps, bench.mini.shift).sigmas
    weights = reach(gram, sigmas, lambda own: bench.decode(bench.run(StaticSchedule(computed=own))), base)
    return {one: best_schedules(gram, sigmas, one.order, weights, correction=one.correction) for one in FORECASTS}


def decide(bench: Bench, proposed: dict[Forecast, dict[int, Found]], counts: Sequence[int]) -> Iterator[Point]:
    """For every count the proposal whose videos are nearest to the uncached ones."""
    bench.base = bench.run(Never())
    bench.reference = bench.videos(bench.base)
    for count in counts:
        yield bench.best(proposed, count)


def counts_of(steps: int, shares: Sequence[float]) -> list[int]:
    return sorted({min(steps, max(3, round(share * steps))) for share in shares})


def choose(options: argparse.Namespace, curve: Sequence[Point], measure: Callable[[int], Point]) -> tuple[Point, str]:
    """The point that meets the target, and one sentence; when none does, the nearest and what it reaches."""
    if options.target is not None:
        point = measure(counts_of(options.steps, [options.target])[0])
        return point, f"{len(point.computed)} of {options.steps} steps computed: {point.psnr:.1f} dB"
    if options.target_psnr is not None:
        fit = [point for point in curve if point.psnr >= options.target_psnr]
        if fit:
            point = min(fit, key=lambda p: len(p.computed))
            return point, f"{point.psnr:.1f} dB with {len(point.computed)} of {options.steps} steps computed"
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


def entry(options: argparse.Namespace, bench: Bench, point: Point, curve: Sequence[Point], text: str) -> dict[str, Any]:
    """A preset's row with its requirements and evidence."""
    return {
        "text": text,
        "policy": point.policy(),
        "quantity": point.quantity(),
        "computed_steps": len(point.computed),
        "requires": {"steps": options.steps, "shift": bench.mini.shift},
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
    require_finite("guidance", options.guidance, minimum=0.0)
    require(options.solver in ("euler", "unipc"), "solver", options.solver, "euler, unipc")
    if options.target is not None:
        require_finite("target", options.target, minimum=3 / options.steps, maximum=1.0)
    for name in ("target_psnr", "target_seconds"):
        if getattr(options, name) is not None:
            require_finite(name, getattr(options, name), minimum=0.0)
    require(
        importlib.util.find_spec("torchmetrics") is not None, "calibrate", "no torchmetrics", "pip install torchmetrics"
    )
    require_folder(options.out.parent)
    require(not options.out.is_dir(), "out", str(options.out), "a file, not a folder")
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
    proposed = propose(Bench(*common, CALIBRATION_SEED, options.pairs))
    deciding = Bench(*common, DECIDING_SEED, 2 * options.pairs)
    curve: list[Point] = []
    for point in decide(deciding, proposed, counts_of(options.steps, SHARES)):
        curve.append(point)
        share = len(point.computed) / options.steps
        how = f"order {point.forecast.order}, correction {point.forecast.correction}"
        print(f"  {share:5.0%} computed  {point.psnr:6.2f} dB, {how}", flush=True)

    def measure(count: int) -> Point:
        known = next((point for point in curve if len(point.computed) == count), None)
        return known or deciding.best(proposed, count)

    if options.ship:
        rows = {}
        for name, share in SHIPPED.items():
            point = measure(counts_of(options.steps, [share])[0])
            text = f"Calibrated: {len(point.computed)} of {options.steps} steps computed, the others forecast."
            rows[shipped_name(name, options.steps)] = entry(options, deciding, point, curve, text)
        print(f"\nwritten: {write(options.out, rows)}")
        return 0
    point, outcome = choose(options, curve, measure)
    text = f"Calibrated: {outcome}."
    path = write(options.out, {options.name: entry(options, deciding, point, curve, text)})
    print(f"\n{outcome}\nwritten: {path}")
    return 0


def write(path: Path, rows: dict[str, Any]) -> Path:
    """The presets as a file of the form of presets/*.json; rows of other names that are there already stay."""
    content: dict[str, Any] = {"schema": SCHEMA, "presets": {}}
    if path.is_file():
        content = read_presets(path)
    content["presets"] = {**content["presets"], **rows}
    with whole_file(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
