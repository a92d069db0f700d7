"""How far errors are carried on in the bundled models: what the reach prior of calibration rests on.

    python -m benchmarks.reach

Videos are made with lists of many shapes, in the first chunk alone (videos of one chunk) and in the later ones alone
(of three), and their errors are laid against those that the inner products of the velocities predict for every slope of
the reach. The slope with the least scatter, both models together, is what ``calibrate/prior.py`` holds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowcache_core.calibrate.bundled import Mini, MiniMagi
from flowcache_core.calibrate.record import Record
from flowcache_core.calibrate.runs import Setup, Specimen, generated, paired, videos
from flowcache_core.calibrate.search import Floats, best_schedules, error_of
from flowcache_core.calibrate.tables import FORECAST
from flowcache_core.commands.arguments import Parser
from flowcache_core.errors import require_count
from flowcache_core.reuse.schedule import StaticSchedule

from .results import save, stored

SEED, FIRST_SEED = 0, 5000
SLOPES = tuple(k / 4 for k in range(25))
COUNTS = {"first": (0.2, 0.28, 0.36, 0.44, 0.52, 0.6), "later": (0.1, 0.12, 0.16, 0.2, 0.26, 0.34)}
CHUNKS = {"first": 1, "later": 3}


@dataclass(frozen=True)
class Tried:
    """A list of computed steps, and the natural logarithm of the mean square error it left in the decoded chunks, which
    are 0..1: the mean over videos, of each chunk that reused steps."""

    computed: tuple[int, ...]
    errors: tuple[float, ...]


def lists(gram: Floats, sigmas: Sequence[float], shares: Sequence[float], count: int) -> list[tuple[int, ...]]:
    """Searched with a reach of any slope, then up to four of their steps moved by up to three."""
    rng, steps, found = np.random.default_rng(SEED), len(gram), []
    levels = np.array(sigmas[:-1])
    tables = [best_schedules(gram, sigmas, 1, np.exp(slope * levels), correction=2) for slope in (0, 1.2, 2.4, 3.6, 5)]
    for _ in range(count):
        wanted = max(3, round(float(rng.choice(shares)) * steps))
        computed = set(tables[rng.integers(len(tables))][wanted].computed)
        for _ in range(rng.integers(5)):
            old = int(rng.choice(sorted(computed - {0, steps - 1})))
            new = int(np.clip(old + rng.integers(-3, 4), 1, steps - 2))
            computed = (computed - {old}) | {new}
        found.append(tuple(sorted(computed)))
    return found


def measure(
    specimen: Specimen, part: str, pairs: int, count: int, known: dict[str, Any], keep: Callable[[dict[str, Any]], None]
) -> None:
    """Measure what is not ``known`` of the ``part`` ("first" or "later"); ``keep`` gets all of it after every list."""
    rows: list[dict[str, Any]] = known.get("rows", [])
    if len(rows) >= count:
        return
    setup = replace(specimen.default, chunks=CHUNKS[part])
    batch, record = paired(specimen.prompts, FIRST_SEED, pairs), Record()
    reference = decoded(specimen, generated(specimen, setup, batch, policy=record))
    gram, every = record.grams.tables()[part == "later"], tuple(range(setup.steps))
    for computed in lists(gram, record.grams.levels, COUNTS[part], count)[len(rows) :]:
        first, later = (computed, every) if part == "first" else (every, computed)
        policy = StaticSchedule(computed=later, first=first)
        square = (
            decoded(specimen, generated(specimen, setup, batch, policy=policy, quantity=FORECAST)) - reference
        ) ** 2
        errors = square.mean(axis=(2, 3, 4)).clip(1e-9)  # [B, frames]
        kept = [chunk for chunk in range(setup.chunks) if chunk or part == "first"]
        by_chunk = [float(np.log(errors[:, frames_of(specimen, setup, chunk)].mean(1)).mean()) for chunk in kept]
        rows = [*rows, {"computed": " ".join(map(str, computed)), "log_error": by_chunk}]
        keep({"gram": [" ".join(f"{value:.9g}" for value in row) for row in gram], "rows": rows})
        print(f"{specimen.name:10} {part:6} {len(computed):3} " + " ".join(f"{e:7.2f}" for e in by_chunk), flush=True)


def decoded(specimen: Specimen, latents: Any) -> NDArray[np.float64]:
    return np.stack([video.numpy() for video in videos(specimen, latents)]).astype(np.float64) / 255


def frames_of(specimen: Specimen, setup: Setup, chunk: int) -> slice:
    """The chunk's frames of the decoded video: one for the first latent frame, four for every other."""
    found = specimen.settings(setup).plan.chunks[chunk]
    return slice(max(0, 4 * found.first_frame - 3), 4 * found.end_frame - 3)


def scatter(gram: Floats, sigmas: Sequence[float], tried: Sequence[Tried], slope: float, share: float) -> NDArray[Any]:
    """Logarithm of measured over predicted error, by list."""
    weights = np.exp(slope * np.array(sigmas[:-1]))
    details = {"correction": FORECAST.correction, "forecast_share": share}
    predicted = [error_of(gram, sigmas, one.computed, FORECAST.order, weights, **details) for one in tried]  # type: ignore[arg-type]
    return np.array([one.errors[0] for one in tried]) - np.log(np.maximum(predicted, 1e-15))


Part = tuple[Floats, Sequence[float], Sequence[Tried]]


def fitted(parts: Sequence[Part]) -> dict[str, float]:
    """Slope with the least scatter over all models together, its level and its scatter; and the least scatter when the
    forecast's own error counts as well."""

    def spread(slope: float, share: float) -> float:
        return math.sqrt(np.mean([scatter(*part, slope, share).var() for part in parts]))

    slope = min(SLOPES, key=lambda one: spread(one, 0.0))
    level = float(np.mean([scatter(*part, slope, 0.0).mean() for part in parts])) / 2
    decibels = 10 / math.log(10)
    beside = min(spread(one, 1.0) for one in SLOPES)
    return {
        "slope": slope,
        "level": level,
        "scatter_dB": decibels * spread(slope, 0.0),
        "scatter_with_forecast_error_dB": decibels * beside,
    }


def main(argv: Sequence[str]) -> int:
    """Measure what is not stored yet, fit, print and save."""
    p = Parser("reach", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--lists", type=int, default=24)
    p.add_argument("--pairs", type=int, default=4)
    p.add_argument("--stored", action="store_true", help="fit what is stored, measure nothing")
    options = p.parse_args(argv)
    require_count("pairs", options.pairs, minimum=1, maximum=100)
    figures = stored("reach")
    if (figures.get("lists"), figures.get("pairs")) != (options.lists, options.pairs):
        figures = {"lists": options.lists, "pairs": options.pairs, "measured": {}}
    specimens = {specimen.name: specimen for specimen in (Mini(), MiniMagi())}
    for name, specimen in specimens.items():
        for part in () if options.stored else CHUNKS:

            def keep(found: dict[str, Any], key: str = f"{name} {part}") -> None:
                figures["measured"][key] = found
                save("reach", figures)

            known = figures["measured"].get(f"{name} {part}", {})
            measure(specimen, part, options.pairs, options.lists, known, keep)
    for part in CHUNKS:
        groups = {
            name: _read(figures, specimen, name, part)
            for name, specimen in specimens.items()
            if f"{name} {part}" in figures["measured"]
        }
        alone = {name: fitted([group]) for name, group in groups.items()}
        figures[part] = fitted(list(groups.values())) | {"alone": alone}
        print(part, figures[part])
        if part == "later":
            pairs = [one.errors for _, _, tried in groups.values() for one in tried]
            carried = [math.exp(second - first) - 1 for first, second in pairs]
    figures["carry"] = float(np.median(carried))
    print(f"carry {figures['carry']:.2f}\nsaved: {save('reach', figures)}")
    return 0


def _read(
    figures: dict[str, Any], specimen: Specimen, name: str, part: str
) -> tuple[Floats, Sequence[float], list[Tried]]:
    found = figures["measured"][f"{name} {part}"]
    sigmas = specimen.settings(replace(specimen.default, chunks=CHUNKS[part])).schedule.sigmas
    tried = [Tried(tuple(map(int, row["computed"].split())), tuple(row["log_error"])) for row in found["rows"]]
    return np.array([[float(value) for value in row.split()] for row in found["gram"]]), sigmas, tried


if __name__ == "__main__":
    import sys

    raise SystemExit(main(sys.argv[1:]))
