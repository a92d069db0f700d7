"""``python dev.py calibrate``: record a model once, write a preset with the evidence it rests on.

By default a run or two with every step computed are recorded, and the lists follow from that and from how far errors
are carried on in the bundled models; nothing else is run. With --thorough probe runs measure how far they are carried
on in this model, and videos of other seeds decide between proposals and give the quality that the preset promises.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..architecture import architecture_of
from ..calibrate.afar import Afar
from ..calibrate.bundled import BUNDLED as BUNDLED
from ..calibrate.bundled import PROMPTS
from ..calibrate.choose import Chooser, Target, policy_row, preset_row, required
from ..calibrate.record import Record
from ..calibrate.recording import Facts, Recording
from ..calibrate.runs import Pair, Setup, Specimen, generated, paired
from ..calibrate.thorough import SHARES, Bench, Kept, Point, Thorough, totals
from ..calibrate.told import outcome, preset_text, steps_of
from ..calibrate.weights import RELEASED, Files
from ..errors import SettingError, require, require_count, require_finite
from ..files import only_writer, require_file, write_json
from ..presets import SCHEMA, read_presets
from ..report.events import Event, StepTaken
from ..report.progress import Progress, time_left
from ..solvers import SOLVERS
from ..sweep.workers import add_worker_arguments, ready, workers_of
from .arguments import NAME, Parser, require_device

CALIBRATION_SEED, DECIDING_SEED = 5000, 7000
SHIPPED = {"slow": 0.5, "balanced": 0.3, "fast": 0.2}


def parser() -> argparse.ArgumentParser:
    p = Parser("calibrate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--model", required=True, help=", ".join((*BUNDLED, *RELEASED)))
    p.add_argument("--weights", type=Path, help="the transformer's file or folder; the bundled models have theirs")
    p.add_argument("--prompts", type=Path, help=".safetensors with encoded prompts: prompt, negative, mask")
    p.add_argument("--vae", type=Path, help="the autoencoder's file, for --thorough")
    p.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
    p.add_argument("--height", type=int, help="pixels (default: the released size)")
    p.add_argument("--width", type=int)
    p.add_argument("--plan", help="order of the chunks (default: the model's own)")
    p.add_argument("--chunks", type=int, help="length of the videos")
    p.add_argument("--steps", type=int, help="denoising steps per chunk (default: 50; 64 for MAGI-1)")
    p.add_argument("--guidance", type=float, help="classifier-free guidance")
    p.add_argument("--solver", help=", ".join(SOLVERS))
    p.add_argument("--runs", type=int, default=1, help="videos to record, those in --recording included (default: 1)")
    p.add_argument("--recording", type=Path, help="where it is kept and goes on (default: out/MODEL.recording.json)")
    target = p.add_mutually_exclusive_group(required=True)
    target.add_argument("--target", type=float, help="share of the steps to compute, such as 0.5")
    target.add_argument("--target-speed-up", type=float, help="times as fast, of the time in the model, such as 2.5")
    target.add_argument("--target-psnr", type=float, help="dB against the uncached run (without --thorough: expected)")
    target.add_argument("--target-seconds", type=float, help="seconds per chunk on this machine")
    target.add_argument("--ship", action="store_true", help="write slow, balanced and fast; implies --thorough")
    p.add_argument(
        "--thorough", action="store_true", help="probe runs and deciding videos too: hours instead of minutes"
    )
    p.add_argument(
        "--pairs", type=int, help="pairs to calibrate on, twice as many decide (default: 6); implies --thorough"
    )
    p.add_argument("--shares", type=shares, help=f"points of the measured curve (default: {listed(SHARES)})")
    p.add_argument("--dry-run", action="store_true", help="say how many forwards and minutes it takes, and stop")
    p.add_argument("--name", default="calibrated", help="name of the preset (default: calibrated)")
    p.add_argument("--out", type=Path, default=Path("out/calibrated.json"), help="file to write (default: %(default)s)")
    add_worker_arguments(p)
    return p


def shares(given: str) -> tuple[float, ...]:
    return tuple(float(one) for one in given.split(","))


def listed(given: Sequence[float]) -> str:
    return ",".join(f"{one:g}" for one in given)


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

    def thorough(self) -> Thorough:
        pairs, specimen = self.pairs, self.specimen
        kept = Kept(
            self.options.out.with_suffix(".measured.json"),
            self.about(),
            told=lambda name: print(f"  {name.split(' [')[0]}", flush=True),
        )
        batch, decisive = (
            paired(specimen.prompts, seed, count)
            for seed, count in ((CALIBRATION_SEED, pairs), (DECIDING_SEED, 2 * pairs))
        )
        sorting = Bench(specimen, self.setup, batch, kept, self.afar)
        deciding = Bench(specimen, self.setup, decisive, kept, self.afar)
        return Thorough(Recording(self.recording.facts, self.setup.chunks), sorting, deciding)

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


INTERRUPTED = " (interrupted)"


def begin(options: argparse.Namespace) -> Calibration:
    """The call's model, setup and recording. SettingError for what cannot work."""
    known = (*BUNDLED, *RELEASED)
    require(options.model in known, "model", options.model, ", ".join(known))
    check(options)
    specimen = specimen_of(options)
    default = specimen.default
    given = {
        "name": options.plan,
        "chunks": options.chunks,
        "steps": options.steps,
        "guidance": options.guidance,
        "solver": options.solver and SOLVERS[options.solver](),
    }
    setup = replace(default, **{key: value for key, value in given.items() if value is not None})
    require(setup.name in specimen.plans, "plan", setup.name, ", ".join(specimen.plans))
    if options.target is not None:
        require_finite("target", options.target, minimum=2 / setup.steps, maximum=1.0)
    model = specimen.name if options.weights is None else options.weights.name
    settings = specimen.settings(setup)
    architecture = architecture_of(specimen.transformer)
    facts = Facts.of(settings, model, specimen.sha256, specimen.shift(setup), setup.guidance, architecture)
    call = Calibration(options, specimen, setup, Recording(facts, setup.chunks), [])
    if call.place.exists():
        found = Recording.load(call.place)
        steps = found.steps
        require(
            steps == setup.steps, f"recording {call.place}", f"{steps} steps", f"{setup.steps} steps, or another file"
        )
        call.recording.merge(found)
    return call


def check(options: argparse.Namespace) -> None:
    """What can be refused before weights are read."""
    if options.steps is not None:
        require_count("steps", options.steps, minimum=6, maximum=200)
    for share in options.shares or ():
        require_finite("shares", share, minimum=0.04, maximum=1.0)
    if options.pairs is not None:
        require_count("pairs", options.pairs, minimum=2, maximum=len(PROMPTS))
        options.thorough = True
    options.thorough = options.thorough or options.ship
    if workers_of(options) is not None:
        require(options.thorough, "workers", options.workers or options.ray, "nothing without --thorough")
    require_count("runs", options.runs, minimum=1, maximum=10_000)
    require_device("device", options.device)
    if options.chunks is not None:
        require_count("chunks", options.chunks, minimum=1, maximum=1000)
    if options.guidance is not None:
        require_finite("guidance", options.guidance, minimum=0.0)
    require(options.solver in (None, *SOLVERS), "solver", options.solver, ", ".join(SOLVERS))
    for name in ("target_psnr", "target_seconds"):
        if getattr(options, name) is not None:
            require_finite(name, getattr(options, name), minimum=0.0)
    if options.target_speed_up is not None:
        require_finite("target_speed_up", options.target_speed_up, minimum=1.0)
    plain = 0 < len(options.name) <= NAME and options.name.isprintable() and not set(options.name) & set("/\\")
    require(plain, "name", options.name, f"a name of at most {NAME} characters without slashes")
    require_file(options.out)
    if options.recording is not None:
        require_file(options.recording, "recording")
    if options.out.exists():
        read_presets(options.out)  # its rows stay beside the new one


def specimen_of(options: argparse.Namespace) -> Specimen:
    if options.model in BUNDLED:
        for name in ("weights", "prompts", "vae", "height", "width"):
            given = getattr(options, name)
            require(given is None, name, given, f"nothing: {options.model} is bundled with all it needs")
        return BUNDLED[options.model]()
    for name in ("weights", "prompts"):
        require(getattr(options, name) is not None, name, None, f"a file: {options.model} comes without")
    if options.thorough:
        require(options.vae is not None, "vae", None, "the autoencoder's file: --thorough compares decoded videos")
    files = Files(options.weights, options.prompts, options.vae, options.height, options.width, options.device)
    return RELEASED[options.model](files)


def quick(call: Calibration) -> int:
    """Record, search, write."""
    options = call.options
    if options.dry_run:
        return dry_run(call, (options.runs - call.done) * call.setup.chunks * (call.setup.steps + call.extra_passes))
    call.record()
    chooser = Chooser(call.recording, call.options.chunks, call.extra_passes)
    target = Target(options.target, options.target_speed_up, options.target_seconds, options.target_psnr)
    seconds = call.seconds_per_step if options.target_seconds is not None else None
    choice = chooser.choose(target, seconds)
    seeds = [CALIBRATION_SEED, CALIBRATION_SEED + len(call.recording.sources) - 1]
    row = preset_row(chooser, choice, preset_text(choice, chooser), seeds=seeds)
    path = keep(options.out, {options.name: row})
    for remark in call.recording.remarks():
        print(f"note: {remark}")
    print(f"\n{outcome(target, choice, chooser, seconds)}\nrecording: {call.place}\nwritten: {path}")
    return 0


def dry_run(call: Calibration, forwards: int) -> int:
    seconds = call.seconds_per_step or 0.0
    branches = call.specimen.denoiser([call.pair(0)[0]], call.setup).branches
    passes = f"{forwards} chunk steps, {forwards * branches} forwards of a chunk"
    print(f"{passes}; about {forwards * seconds / 60:.1f} minutes at {seconds:.3f} s a step, measured on a first chunk")
    return 0


def full(call: Calibration) -> int:
    """Probe, search, decide, write."""
    options, thorough, steps = call.options, call.thorough(), call.setup.steps
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


def main(argv: Sequence[str]) -> int:
    """Calibrate and write the preset. Raises SettingError for what the user can put right."""
    call = begin(parser().parse_args(argv))
    with ready(workers_of(call.options)):
        return full(call) if call.options.thorough else quick(call)


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
