"""What the runs of a MODEL left behind for the report node, and which run made which latents."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....flowcache_core.calibrate.measured_heads import MeasuredHeads
from ....flowcache_core.calibrate.recording import Recording
from ....flowcache_core.report.record import Recorder, RunRecord

if TYPE_CHECKING:
    from .settings import ReuseSettings

REMEMBERED = 8  # runs of one MODEL
VALUES = 1024  # of a result, enough to tell it from any other
NEAR = 1e-3  # of the largest value: the host scales and moves latents on their way, and hands out the clean ones too

BYPASSED = (
    "No report: this MODEL comes from no FlowCache node, so its run was not recorded; connect the output of FlowCache "
    "Chunkwise Reuse, KV Cache Compressor or a loader of this pack that also goes to the guider."
)
NOT_SAMPLED = "No report: this MODEL was not sampled; connect the very one that goes to the guider."
OTHER_SAMPLER = (
    "No report: this MODEL was not sampled by an AR video sampler, so nothing was reused or compressed; use AR Video "
    "Sampler (FlowCache) or Sampler AR Video."
)
NO_STEP = "No report: the sampler was given no step to take (sigmas with one value)."
NOT_RECORDED = (
    "No recording: choose the preset record on FlowCache Chunkwise Reuse, make one video, and connect its MODEL here."
)
NOT_MEASURED = (
    "No heads were measured: choose measure heads on FlowCache Sparse Attention, make one video with AR Video Sampler "
    "(FlowCache), and connect its MODEL here."
)
LATEST_SHOWN = "note: this latent is no output of the model's last runs; the latest of them is shown"


class NoRecordError(Exception):
    """There is nothing to report; the message is a sentence for the user."""


@dataclass(frozen=True)
class Sketch:
    """Some values of latents, evenly spread, by which they are known again on another device or in another format."""

    shape: tuple[int, ...]
    values: Tensor

    @classmethod
    def of(cls, latents: Tensor) -> Sketch:
        flat = latents.detach().flatten()
        return cls(tuple(latents.shape), flat[:: max(1, flat.numel() // VALUES)].to("cpu", torch.float32).clone())

    def distance(self, other: Sketch) -> float:
        """Of the largest value; infinite for another shape. What is NaN in both counts as equal."""
        if self.shape != other.shape:
            return float("inf")
        here, there = torch.nan_to_num(self.values), torch.nan_to_num(other.values)
        if not torch.equal(self.values.isnan(), other.values.isnan()):
            return float("inf")
        return float((here - there).abs().max() / here.abs().max().clamp(min=1e-6)) if here.numel() else 0.0


@dataclass
class Run:
    """autoregressive: whether a sampler ran it that leaves a record, as soon as it takes a step. noise: what it began
    from. made: its latents. recording, heads: for a calibration, where that was asked for. reuse: what it reused, None
    for nothing. compressor: whether KV Cache Compressor was on the model. message: the last one of its live map
    (docs/live-map.md).
    """

    autoregressive: bool
    noise: Sketch | None = None
    record: RunRecord | None = None
    made: Sketch | None = None
    recording: Recording | None = None
    heads: MeasuredHeads | None = None
    reuse: ReuseSettings | None = None
    compressor: bool = False
    message: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class RecordSlot:
    """The last runs of a MODEL, oldest first. A result, never run state."""

    runs: deque[Run] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def begin(self, autoregressive: bool, noise: Tensor | None = None) -> None:
        """A run begins, of an AR video sampler or of another."""
        self.runs.append(Run(autoregressive, None if noise is None else Sketch.of(noise)))

    def keep(
        self,
        recorder: Recorder,
        message: Mapping[str, Any],
        recording: Recording | None = None,
        reuse: ReuseSettings | None = None,
        heads: MeasuredHeads | None = None,
        *,
        compressor: bool = False,
    ) -> None:
        """Note the run as far as it went; nothing on a MODEL without settings, whose slot nobody will ask."""
        if not self.runs:
            return
        run = self.runs[-1]
        run.recording, run.reuse, run.message, run.heads = recording, reuse, message, heads
        run.compressor = compressor
        with suppress(ValueError):  # it did not even start
            self.runs[-1].record = recorder.record()

    def end(self, latents: Tensor) -> None:
        """The run that began last has made ``latents``."""
        self.runs[-1].made = Sketch.of(latents)

    @property
    def latest(self) -> Run | None:
        """The latest run that left a record."""
        return next((run for run in reversed(self.runs) if run.record is not None), None)

    @property
    def record(self) -> RunRecord | None:
        """Of the latest run that left one."""
        return None if self.latest is None else self.latest.record

    def run_of(self, latents: Tensor) -> Run | None:
        """The run that made ``latents``; None when no remembered one did."""
        wanted, best, nearest = Sketch.of(latents), None, NEAR
        for run in reversed(self.runs):
            distance = float("inf") if run.made is None else run.made.distance(wanted)
            if distance < nearest:
                best, nearest = run, distance
        return best

    def recorded_run(self, latents: Tensor | None) -> Run:
        """The run that made ``latents``, or the latest that was recorded; NoRecordError where none was."""
        run = None if latents is None else self.run_of(latents)
        if run is None:
            run = next((one for one in reversed(self.runs) if one.recording is not None), None)
        if run is None or run.recording is None:
            raise NoRecordError(NOT_RECORDED if self.runs else NOT_SAMPLED)
        return run

    def measured_run(self, latents: Tensor | None) -> MeasuredHeads:
        """Heads of the run that made ``latents``, or of the latest that measured some; NoRecordError where none did."""
        run = None if latents is None else self.run_of(latents)
        for one in [run] if run is not None else reversed(self.runs):
            if one.heads is not None:
                return one.heads
        raise NoRecordError(NOT_MEASURED if self.runs else NOT_SAMPLED)

    def report_on(self, latents: Tensor) -> tuple[Run, str | None]:
        """The run that made ``latents``, or the latest one and a note; it has a record. NoRecordError without any."""
        if not self.runs:
            raise NoRecordError(NOT_SAMPLED)
        run = self.run_of(latents)
        if run is not None and run.record is not None:
            return run, None
        latest = self.latest if run is None else None
        if latest is None:
            raise NoRecordError(NO_STEP if (run or self.runs[-1]).autoregressive else OTHER_SAMPLER)
        return latest, LATEST_SHOWN if len(self.runs) > 1 else None
