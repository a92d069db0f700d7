"""Reuse on the mini MAGI: quality against the share of computed steps, and the margin at an equal share."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowcache_core.calibrate import tables
from flowcache_core.calibrate.runs import Pair, Setup, videos
from flowcache_core.calibrate.tables import FORECAST
from flowcache_core.presets import load_preset
from flowcache_core.reuse.base import ReusePolicy
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.distance import PatchDistance, TimeDistance
from flowcache_core.reuse.interval import Interval
from flowcache_core.reuse.quantity import Increment, Residual, Velocity
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.reuse.teacache import TeaCache

from .mini_runs import Method, magi, run

OURS, PUBLISHED = "ours (calibrated)", "chunkwise (Eq. 8), patch, increment"
WARMUP = 5  # of 64 steps, as published
SHARES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5)
PROBES, RATIO = 8, 2.0
# By distance: thresholds that spread over the shares, found by trying; the published ones are 0.01 and 0.015.
PATCH = (0.01, 0.015, 0.03, 0.06, 0.12)
TIME = (0.05, 0.07, 0.1, 0.2, 0.4)


def calibrated(setup: Setup, pairs: Sequence[Pair]) -> dict[float, StaticSchedule]:
    """Share -> schedules with the least forecast error on short videos of ``pairs``, for a video of ``setup``."""

    def video(policy: ReusePolicy) -> Tensor:
        return torch.stack(videos(magi(), run(replace(setup, chunks=3), pairs, of=magi(), policy=policy)[1])).float()

    found = tables.calibrated(video, FORECAST, PROBES)
    policies = {}
    for share in SHARES:
        way = tables.split(round(share * setup.chunks * setup.steps), setup.chunks, setup.steps, RATIO)
        policies[share] = found.policy(way)
    return policies


def methods(setup: Setup, calibration: Sequence[Pair]) -> Iterator[Method]:
    """Ours first."""
    for share, policy in calibrated(setup, calibration).items():
        yield Method(OURS, f"{share:.0%}", {"policy": policy, "quantity": FORECAST})
    for name in ("slow", "fast"):
        preset, _ = load_preset("magi-1-4.5b", name).fit(setup.steps)
        yield Method("even (4.5B presets)", name, {"policy": preset.policy, "quantity": preset.quantity})
    for threshold in PATCH:
        eq8 = Chunkwise(
            threshold=threshold, warmup_steps=WARMUP, distance=PatchDistance(), inclusive=False, always_last=False
        )
        yield Method(PUBLISHED, f"{threshold:g}", {"policy": eq8, "quantity": Increment()})
        ended = replace(eq8, always_last=True)
        yield Method("chunkwise (Eq. 8), patch, velocity", f"{threshold:g}", {"policy": ended, "quantity": Velocity()})
        pooled = TeaCache(threshold=threshold, warmup_steps=WARMUP, distance=PatchDistance())
        yield Method("teacache, patch, velocity", f"{threshold:g}", {"policy": pooled, "quantity": Velocity()})
    for threshold in TIME:
        teacache = TeaCache(threshold=threshold, warmup_steps=WARMUP, distance=TimeDistance())
        yield Method("teacache, time, residual", f"{threshold:g}", {"policy": teacache, "quantity": Residual()})
    for interval in (2, 3, 4, 6, 8):
        fixed = Interval(interval=interval, warmup_steps=2)
        yield Method("fixed interval, velocity", str(interval), {"policy": fixed, "quantity": Velocity()})
    for steps in (8, 12, 20, 24, 32, 40):  # multiples of the window's four chunks; 12 are of two lengths
        yield Method("fewer steps", str(steps), setup=replace(setup, steps=steps))


def margins(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """dB by which ours is above each method at ours' computed shares, where that method's curve covers them."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        curves.setdefault(row["method"], []).append((row["computed"], row["psnr"]))
    found: dict[str, dict[str, float]] = {}
    for name, points in curves.items():
        if name == OURS or len(points) < 2:
            continue
        shares, psnr = zip(*sorted(points), strict=True)
        covered = {
            f"{share:.1%}": round(own - float(np.interp(share, shares, psnr)), 2)
            for share, own in sorted(curves[OURS])
            if shares[0] <= share <= shares[-1]
        }
        if covered:
            found[name] = {**covered, "median": round(statistics.median(covered.values()), 2)}
    return found
