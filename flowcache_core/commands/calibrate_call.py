"""One call of ``calibrate``: the model, how it is run, and its recording, which goes on from call to call."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..calibrate.afar import Afar
from ..calibrate.bundled import BUNDLED
from ..calibrate.record import Record
from ..calibrate.recording import Recording
from ..calibrate.runs import Pair, Setup, Specimen, generated, paired
from ..report.events import Event, StepTaken
from ..report.progress import Progress, time_left
from ..sweep.workers import workers_of

CALIBRATION_SEED = 5000
INTERRUPTED = " (interrupted)"


@dataclass
class Calibration:
    """One call of the command: the model, how it is run, and what is known of it so far."""

    options: argparse.Namespace
    specimen: Specimen
    setup: Setup
    recording: Recording
    seconds: list[float]

    @property
    def place(self) -> Path:
        given: Path | None = self.options.recording
        return given or self.options.out.parent / f"{self.specimen.name}.recording.json"

    @property
    def pairs(self) -> int:
        return self.options.pairs or 6

    @property
    def extra_passes(self) -> int:
        return int(self.specimen.settings(self.setup).clean_pass)

    @property
    def done(self) -> int:
        """Videos recorded as a whole."""
        return sum(not source.endswith(INTERRUPTED) for source in self.recording.sources)

    def record(self) -> None:
        """Record what is missing of the runs asked for; kept after every one, and as far as it goes when stopped."""
        begun, known = time.monotonic(), self.done
        while (done := self.done) < self.options.runs:
            left = time_left(done - known, self.options.runs - known, time.monotonic() - begun)
            pair = self.pair(len(self.recording.sources))
            source = f"{pair[0]}, seed {pair[1]}"
            if done > known:
                print(f"recording {done + 1} of {self.options.runs}, {left} left", flush=True)
            try:
                self.run(pair, Record(grams=self.recording.grams))
            except BaseException:
                self.recording.sources += (f"{source}{INTERRUPTED}",)
                if self.recording.grams.whole:
                    self.recording.save(self.place)
                raise
            self.recording.sources += (source,)
            self.recording.save(self.place)

    def pair(self, number: int) -> Pair:
        return paired(self.specimen.prompts, CALIBRATION_SEED, number + 1)[number]

    def run(self, pair: Pair, record: Record) -> None:
        progress = Progress("recording", sys.stderr)

        def observe(event: Event) -> None:
            progress(event)
            if isinstance(event, StepTaken):
                self.seconds.append(event.seconds)

        generated(self.specimen, self.setup, [pair], policy=record, observe=observe)

    @property
    def seconds_per_step(self) -> float | None:
        """Of one computed step of a chunk on this machine; two steps are taken for it where nothing was run."""
        if not self.seconds:
            short = replace(self.setup, chunks=1)
            self.run_short(short)
        return sum(self.seconds) / len(self.seconds) if self.seconds else None

    def run_short(self, setup: Setup) -> None:
        """The first steps of one chunk, for their time."""

        class Enough(Exception):
            pass

        def observe(event: Event) -> None:
            if isinstance(event, StepTaken):
                self.seconds.append(event.seconds)
                if event.step == 2:
                    raise Enough

        try:
            generated(self.specimen, setup, [self.pair(0)], observe=observe)
        except Enough:
            del self.seconds[0]  # which pays for what torch does on its first call

    @property
    def afar(self) -> Afar | None:
        """The workers asked for, and where they find the model."""
        workers = workers_of(self.options)
        if workers is None:
            return None
        given = {name: getattr(self.options, name) for name in ("weights", "prompts", "vae", "height", "width")}
        files = {key: str(value.resolve()) if isinstance(value, Path) else value for key, value in given.items()}
        if self.options.model in BUNDLED:
            return Afar(workers, self.options.model, {})
        return Afar(workers, self.options.model, {**files, "device": self.options.device})

    def about(self) -> dict[str, Any]:
        """What must be the same for measurements of an earlier call to count."""
        setup = self.setup
        return {
            **vars(self.recording.facts),
            "chunks": setup.chunks,
            "steps": setup.steps,
            "pairs": self.pairs,
            "size": [getattr(self.specimen, "height", None), getattr(self.specimen, "width", None)],
        }


def dry_run(call: Calibration, forwards: int) -> int:
    """Say what so many chunk steps will take."""
    seconds = call.seconds_per_step or 0.0
    branches = call.specimen.denoiser([call.pair(0)[0]], call.setup).branches
    passes = f"{forwards} chunk steps, {forwards * branches} forwards of a chunk"
    whole = forwards * seconds
    about = f"{whole / 60:.1f} minutes" if whole >= 60 else f"{whole:.0f} seconds"
    print(f"{passes}; about {about} at {seconds:.3f} s a step, measured on a first chunk")
    return 0
