"""``calibrate --thorough``: probe runs, a search, and videos of other seeds that decide."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..calibrate.choose import policy_row, required
from ..calibrate.recording import Recording
from ..calibrate.runs import Setup, paired
from ..calibrate.thorough import SHARES, Bench, Kept, Point, Thorough, totals
from ..calibrate.told import steps_of
from ..report.progress import time_left
from .calibrate_call import CALIBRATION_SEED, Calibration, dry_run
from .preset_file import keep

DECIDING_SEED = 7000
SHIPPED = {"slow": 0.5, "balanced": 0.3, "fast": 0.2}


def full(call: Calibration) -> int:
    """Probe, search, decide, write."""
    options, thorough, steps = call.options, thorough_of(call), call.setup.steps
    asked = [options.target] if options.target is not None else list(SHIPPED.values()) if options.ship else []
    measured = options.shares or SHARES
    wanted = totals(call.setup, [*measured, *asked])
    if options.dry_run:
        return dry_run(call, thorough.forwards(wanted, 1))
    print(
        f"measuring {len(thorough.sorting.batch)} videos of {call.setup.chunks} chunks, {steps} steps ...", flush=True
    )
    begun, curve = time.monotonic(), list[Point]()
    for done, total in enumerate(wanted):
        curve.append(thorough.best(total))
        left = time_left(done + 1, len(wanted), time.monotonic() - begun)
        share, psnr = total / (call.setup.chunks * steps), curve[-1].psnr
        print(f"  {share:5.0%}  {psnr:6.2f} dB, {steps_of(curve[-1].split, steps)}; about {left} left", flush=True)
    regular = [point for point in curve if point.total in totals(call.setup, measured)]
    if options.ship:
        rows = {}
        for name, share in SHIPPED.items():
            point = next(one for one in curve if one.total == totals(call.setup, [share])[0])
            text = f"Calibrated: {steps_of(point.split, steps)}; the others are forecast."
            rows[shipped_name(name, steps)] = entry(call, point, regular, text)
        print(f"\nwritten: {keep(options.out, rows)}")
        return 0
    point, found = choose(options, curve, call.setup)
    path = keep(options.out, {options.name: entry(call, point, regular, f"Calibrated: {found}.")})
    print(f"\n{found}\nwritten: {path}")
    return 0


def thorough_of(call: Calibration) -> Thorough:
    pairs, specimen = call.pairs, call.specimen
    kept = Kept(
        call.options.out.with_suffix(".measured.json"),
        call.about(),
        told=lambda name: print(f"  {name.split(' [')[0]}", flush=True),
    )
    batch, decisive = (
        paired(specimen.prompts, seed, count) for seed, count in ((CALIBRATION_SEED, pairs), (DECIDING_SEED, 2 * pairs))
    )
    sorting = Bench(specimen, call.setup, batch, kept, call.afar)
    deciding = Bench(specimen, call.setup, decisive, kept, call.afar)
    return Thorough(Recording(call.recording.facts, call.setup.chunks), sorting, deciding)


def choose(options: argparse.Namespace, curve: Sequence[Point], setup: Setup) -> tuple[Point, str]:
    """The point that meets the target, and one sentence; when none does, the nearest and what it reaches."""
    if options.target is not None:
        point = next(one for one in curve if one.total == totals(setup, [options.target])[0])
        return point, f"{steps_of(point.split, setup.steps)}: {point.psnr:.1f} dB"
    if options.target_psnr is not None:
        return nearest(
            curve,
            fits=lambda p: p.psnr >= options.target_psnr,
            best=lambda p: -p.total,
            nearest=lambda p: p.psnr,
            wanted=f"{options.target_psnr:g} dB",
            said=lambda p: f"{p.psnr:.1f} dB with {steps_of(p.split, setup.steps)}",
        )
    if options.target_speed_up is not None:
        full = setup.chunks * setup.steps
        return nearest(
            curve,
            fits=lambda p: full / p.total >= options.target_speed_up,
            best=lambda p: p.psnr,
            nearest=lambda p: -p.total,
            wanted=f"{options.target_speed_up:g} times as fast",
            said=lambda p: f"{full / p.total:.1f} times as fast: {p.psnr:.1f} dB",
        )
    return nearest(
        curve,
        fits=lambda p: p.seconds_per_chunk <= options.target_seconds,
        best=lambda p: p.psnr,
        nearest=lambda p: -p.seconds_per_chunk,
        wanted=f"{options.target_seconds:g} s",
        said=lambda p: f"{p.seconds_per_chunk:.2f} s per chunk: {p.psnr:.1f} dB",
    )


def nearest(
    curve: Sequence[Point],
    *,
    fits: Callable[[Point], bool],
    best: Callable[[Point], float],
    nearest: Callable[[Point], float],
    wanted: str,
    said: Callable[[Point], str],
) -> tuple[Point, str]:
    fit = [point for point in curve if fits(point)]
    if fit:
        point = max(fit, key=best)
        return point, said(point)
    point = max(curve, key=nearest)
    return point, f"{wanted} cannot be met; the nearest is {said(point)}"


def entry(call: Calibration, point: Point, curve: Sequence[Point], text: str) -> dict[str, Any]:
    """A preset's row with its requirements and what was measured."""
    facts, pairs = call.recording.facts, call.pairs
    return {
        "text": text,
        "policy": policy_row(point.policy),
        "quantity": point.proposal.quantity,
        "computed_steps": len(point.policy.computed),
        **required(facts, call.setup.steps),
        "evidence": {
            "model_sha256": facts.sha256,
            "solver": facts.solver,
            "guidance": facts.guidance,
            "chunks": call.setup.chunks,
            "prompts": list(call.specimen.prompts),
            "calibration_seeds": [CALIBRATION_SEED, CALIBRATION_SEED + pairs - 1],
            "deciding_seeds": [DECIDING_SEED, DECIDING_SEED + 2 * pairs - 1],
            "curve": [one.row(call.setup.steps) for one in curve],
        },
    }


def shipped_name(name: str, steps: int) -> str:
    """The presets for 50 steps have the plain names."""
    return name if steps == 50 else f"{name}-{steps}"
