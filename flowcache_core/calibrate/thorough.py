"""The full calibration: probe runs measure the reach, videos of other seeds decide between proposals.

What is measured is kept in a file as it comes, so that a calibration that was stopped goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..report.quality import compare
from ..reuse.base import ReusePolicy
from ..reuse.never import Never
from ..reuse.schedule import StaticSchedule
from ..sweep.kept import Kept as Kept
from .afar import Afar
from .record import Record
from .recording import Recording
from .runs import Pair, Setup, Specimen, Spread, generated, videos
from .search import Floats
from .sensitivity import probe_steps
from .tables import FORECAST, FORECASTS, Proposal, Split, Tables, even, measured_reach, searched, splits

PROBES, FINALISTS = 8, 3
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)


@dataclass(frozen=True)
class Point:
    """One proposal on the quality curve. psnr: median over the deciding pairs; psnr_mean decides between proposals."""

    proposal: Proposal
    chunks: int
    psnr: float
    psnr_mean: float
    psnr_p10: float
    seconds_per_chunk: float

    @property
    def policy(self) -> StaticSchedule:
        return self.proposal.policy

    @property
    def split(self) -> Split:
        return Split(len(self.policy.first), len(self.policy.computed))

    @property
    def total(self) -> int:
        """Computed steps of a video of ``chunks`` chunks."""
        return self.split.total(self.chunks)

    def row(self, steps: int) -> dict[str, Any]:
        return {
            "share": self.total / (self.chunks * steps),
            "first_share": len(self.policy.first) / steps,
            "later_share": len(self.policy.computed) / steps,
            "computed": list(self.policy.computed),
            "first": list(self.policy.first),
            "quantity": self.proposal.quantity,
            "psnr": round(self.psnr, 2),
            "psnr_p10": round(self.psnr_p10, 2),
        }


@dataclass
class Bench:
    """Runs of a specimen over a fixed batch of pairs. afar: workers that may measure many schedules at once."""

    specimen: Specimen
    setup: Setup
    batch: Sequence[Pair]
    kept: Kept
    afar: Afar | None = None

    @cached_property
    def reference(self) -> list[Tensor]:
        """The uncached videos."""
        return videos(self.specimen, generated(self.specimen, self.setup, self.batch, policy=Never()))

    @torch.no_grad()
    def video(self, policy: ReusePolicy) -> Tensor:
        """Decoded videos in -1..1, not rounded to pixels: what a probe changes is small."""
        latents = generated(self.specimen, self.setup, self.batch, policy=policy)
        return torch.cat([self.specimen.decode(part) for part in latents.split(4)])

    def name(self, proposal: Proposal) -> str:
        policy, forecast = proposal.policy, proposal.forecast
        other = "" if forecast == FORECAST else f" order {forecast.order} correction {forecast.correction}"
        return f"psnr {self.batch[0][1]} {list(policy.first)} {list(policy.computed)}{other}"

    def measure_all(self, proposals: Iterable[Proposal]) -> list[Point]:
        wanted = list(proposals)
        if self.afar is not None:
            unknown = {self.name(one): one for one in wanted if self.name(one) not in self.kept.values}
            for name, value in self.afar.measure(unknown, self.setup, self.batch, self.kept):
                self.kept.put(name, value)
        return [self.measure(proposal) for proposal in wanted]

    def measure(self, proposal: Proposal) -> Point:
        psnr, seconds = self.kept.get(self.name(proposal), lambda: self.quality(proposal))
        spread = Spread.of(psnr)
        return Point(proposal, self.setup.chunks, spread.median, spread.mean, spread.p10, seconds)

    def quality(self, proposal: Proposal) -> tuple[list[float], float]:
        """PSNR of every pair, and seconds of a chunk."""
        begun = time.perf_counter()
        policy, forecast = proposal.policy, proposal.forecast
        latents = generated(self.specimen, self.setup, self.batch, policy=policy, quantity=forecast)
        seconds = (time.perf_counter() - begun) / (self.setup.chunks * len(self.batch))
        made = zip(videos(self.specimen, latents), self.reference, strict=True)
        return [compare(video, reference).psnr for video, reference in made], seconds


@dataclass
class Thorough:
    """Chooses between proposals for one number of computed steps, on two sets of videos."""

    recording: Recording
    sorting: Bench
    deciding: Bench

    @cached_property
    def tables(self) -> list[Tables]:
        """Searched with the reach that probe runs measure, one for each forecast."""
        reaches = self.reaches  # first: it fills the recording
        return [searched(self.recording.grams, reaches, forecast) for forecast in FORECASTS]

    @cached_property
    def reaches(self) -> list[Floats]:
        found = self.sorting.kept.get("recording", self.record)
        self.recording.merge(Recording.parse(found))
        probed = self.sorting.kept.get("reach", self.probe)
        return [np.asarray(one) for one in probed]

    def record(self) -> dict[str, Any]:
        own = Recording(self.recording.facts, self.recording.chunks)
        generated(self.sorting.specimen, self.sorting.setup, self.sorting.batch, policy=Record(grams=own.grams))
        own.sources = tuple(f"{prompt}, seed {seed}" for prompt, seed in self.sorting.batch)
        return own.document()

    def probe(self) -> list[list[float]]:
        base = self.sorting.video(Never())
        return [one.tolist() for one in measured_reach(self.sorting.video, self.recording.grams, base, PROBES)]

    def best(self, total: int) -> Point:
        """Of all ways to compute ``total`` steps, the one whose videos are nearest to the uncached ones."""
        setup = self.sorting.setup
        ways = splits(total, setup.chunks, setup.steps)
        found = [tables.proposal(way) for tables in self.tables for way in ways]
        spread = [Proposal(even(way, setup.steps), forecast) for forecast in FORECASTS for way in ways]
        proposed = dict.fromkeys([*found, *spread])
        sorted_out = sorted(self.sorting.measure_all(proposed), key=lambda point: -point.psnr_mean)
        finals = self.deciding.measure_all(point.proposal for point in sorted_out[:FINALISTS])
        return max(finals, key=lambda point: point.psnr_mean)

    def forwards(self, totals: Sequence[int], per_step: int) -> int:
        """About how many forwards of one chunk and video all this takes, at most. per_step: guidance branches."""
        setup, videos = self.sorting.setup, len(self.sorting.batch)
        full = setup.chunks * setup.steps
        probes = len(probe_steps(setup.steps, PROBES))
        steps = videos * full * (2 + 2 * probes) + len(self.deciding.batch) * full
        for total in totals:
            proposals = 2 * len(FORECASTS) * len(splits(total, setup.chunks, setup.steps))
            steps += total * (proposals * videos + min(FINALISTS, proposals) * len(self.deciding.batch))
        return steps * per_step


def totals(setup: Setup, shares: Sequence[float]) -> list[int]:
    """Computed steps in all at these shares, at least two a chunk."""
    full = setup.chunks * setup.steps
    return sorted({min(full, max(2 * setup.chunks, round(share * full))) for share in shares})
