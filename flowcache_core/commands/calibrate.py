"""``python dev.py calibrate``: record a model once, write a preset with the evidence it rests on.

By default a run or two with every step computed are recorded, and the lists follow from that and from how far errors
are carried on in the bundled models; nothing else is run. With --thorough probe runs measure how far they are carried
on in this model, and videos of other seeds decide between proposals and give the quality that the preset promises.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..architecture import architecture_of
from ..calibrate.bundled import BUNDLED, PROMPTS
from ..calibrate.choose import Chooser, Target, preset_row
from ..calibrate.recording import Facts, Recording
from ..calibrate.runs import Specimen
from ..calibrate.thorough import SHARES
from ..calibrate.told import outcome, preset_text
from ..calibrate.weights import RELEASED, Files
from ..errors import require, require_count, require_finite
from ..files import require_file
from ..presets import read_presets
from ..solvers import SOLVERS
from ..sweep.workers import add_worker_arguments, ready, workers_of
from .arguments import NAME, Parser, require_device
from .calibrate_call import CALIBRATION_SEED, Calibration, dry_run
from .calibrate_thorough import full
from .preset_file import keep


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


def main(argv: Sequence[str]) -> int:
    """Calibrate and write the preset. Raises SettingError for what the user can put right."""
    call = begin(parser().parse_args(argv))
    with ready(workers_of(call.options)):
        return full(call) if call.options.thorough else quick(call)
