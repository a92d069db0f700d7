"""``python dev.py demo``: one video made twice on the bundled mini model, without and with FlowCache, and compared."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..bundled import BUNDLED
from ..cost import ModelShape
from ..engine import EngineSettings, generate
from ..engine.anchor import LowFrequencies
from ..errors import NotFiniteError, SettingError, require, require_count, require_finite
from ..files import require_folder, whole_folder
from ..kv import COMPRESSORS
from ..kv.settings import KVSettings
from ..mini import GUIDANCE, MiniModel
from ..mini_magi import MiniMagi
from ..models.magi.denoiser import MagiDenoiser
from ..models.wan.denoiser import WanDenoiser
from ..parallel.fits import require_shareable
from ..parallel.launch import run_command
from ..parallel.mesh import LONGEST_WAIT, TIMEOUT, Mesh, joined, started_as_rank
from ..parallel.run import generate_on_ranks
from ..parallel.shape import MeshShape, mesh_from_text
from ..plan import PLANS
from ..presets import Preset, load_preset, preset_names
from ..report import document, figure, places_figure, text
from ..report.events import Event
from ..report.lead import named
from ..report.progress import Progress
from ..report.quality import Quality, compare
from ..report.record import Recorder, RunRecord, settings_tag
from ..report.video import pixels, side_by_side, write_video
from ..reuse import POLICIES
from ..reuse.base import ReusePolicy
from ..reuse.build import build_policy, policy_from_text
from ..reuse.chunkwise import Chunkwise
from ..reuse.never import Never
from ..reuse.quantity import Quantity, Velocity
from .arguments import CHUNKS, STEPS, Parser
from .demo_models import MAGI, MODELS, Subject, load_model, subject_of
from .sparse import SPARSE, sparse_of

EXTRAS = {"matplotlib": "matplotlib", "av": "av"}  # module -> package
LONG, QUICK = (8, 50), (4, 30)  # chunks and steps, by default and with --quick
DEFAULT_PRESET = "balanced"
VANILLA, FLOWCACHE = "vanilla", "flowcache"
WHERE = "where.png"
FILES = (f"{VANILLA}.mp4", f"{FLOWCACHE}.mp4", "compare.mp4", "map.png", WHERE, "report.json")


def parser() -> argparse.ArgumentParser:
    p = Parser("demo", description=__doc__)
    models = ", ".join(MODELS)
    p.add_argument("--model", default="mini", help=f"a bundled model: {models} (default: %(default)s)")
    p.add_argument("--prompt", default="a red circle moving right", help="what to show (default: %(default)s)")
    presets = ", ".join(dict.fromkeys(name for model in BUNDLED for name in preset_names(model)))
    file = "a file that calibrate wrote (FILE.json, or FILE.json:NAME where it holds several)"
    p.add_argument("--preset", help=f"{presets}, or {file} (default: {DEFAULT_PRESET})")
    p.add_argument("--rescale", action="store_true", help="stretch a preset that was made for another number of steps")
    p.add_argument("--policy", help=f"a reuse policy instead of a preset: {', '.join(POLICIES)}")
    p.add_argument("--threshold", type=float, help="epsilon: reuse while the accumulated distance is within it")
    p.add_argument("--warmup", type=int, help="first steps of every chunk that are always computed")
    p.add_argument("--kv-budget", type=budget, default="half", help="finished chunks to keep: a number, half, none")
    p.add_argument("--compressor", help=f"what is kept of them: {', '.join(COMPRESSORS)}")
    p.add_argument("--sparse", help=SPARSE)
    p.add_argument("--density", type=float, help="share of the self-attention that --sparse computes")
    p.add_argument("--plan", help=f"{', '.join(PLANS)} (default: blockwise; window, the only one, with {MAGI})")
    p.add_argument("--chunks", type=int, help=f"length of the video, 12 frames each (default: {LONG[0]})")
    p.add_argument("--steps", type=int, help=f"denoising steps of a chunk (default: {LONG[1]})")
    p.add_argument("--guidance", type=float, default=GUIDANCE, help="classifier-free guidance (default: %(default)s)")
    p.add_argument("--guidance-every", type=int, default=1, help="without text only at every n-th computed step")
    p.add_argument("--low-frequencies", type=float, default=0.0, help="how much of the first chunk's is put back")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", type=Path, default=Path("out/demo"), help="folder for the results (default: %(default)s)")
    ranks = p.add_argument_group("several ranks", "processes of this machine that share each run (docs/distributed.md)")
    ranks.add_argument("--ranks", type=int, default=1, help="how many (default: %(default)s)")
    ranks.add_argument("--mesh", help="BRANCHESxHEADS they are (default: branches first)")
    wait = "seconds that a rank waits for another before the run ends (default: %(default)g)"
    ranks.add_argument("--rank-timeout", type=float, default=TIMEOUT, help=wait)
    p.add_argument("--quick", action="store_true", help=f"{QUICK[0]} chunks of {QUICK[1]} steps")
    p.add_argument("--json", action="store_true", help="print report.json instead of the table")
    return p


def budget(given: str) -> float | str | None:
    """``none``, ``half`` (of the video's chunks), or a number, which the K/V settings judge."""
    return None if given == "none" else given if given == "half" else float(given)


@dataclass(frozen=True)
class Demo:
    """Both runs' settings, complete and checked."""

    mini: MiniModel | MiniMagi
    prompt: Tensor
    vanilla: EngineSettings
    flowcache: EngineSettings
    reuse: Reuse
    guidance: float
    chunks: int
    seed: int
    guidance_every: int = 1

    @property
    def subject(self) -> Subject:
        return subject_of(self.mini)

    def denoiser(self, guidance_every: int = 1) -> WanDenoiser | MagiDenoiser:
        contexts = (self.prompt, self.mini.encode_prompt(""))
        return self.subject.denoiser(contexts, self.guidance, guidance_every)

    def shape(self) -> ModelShape:
        """What the model's FLOPs are counted with."""
        return self.subject.shape(self.prompt)

    def warm_up(self) -> None:
        """Four steps of one chunk, so that neither run pays for what torch does on its first calls."""
        settings = self.subject.settings(self.subject.plans[0], 1, 4)
        self.mini.vae.decode(generate(self.denoiser(), settings, self.mini.noise(1, 0)))

    def mesh(self, ranks: int, asked: MeshShape | None) -> MeshShape:
        """How so many ranks share the runs. SettingError with the numbers that would do."""
        return self.subject.shareable(self.denoiser().branches).fit(ranks, asked)

    def run(self, settings: EngineSettings, progress: Progress | None, mesh: Mesh) -> tuple[RunRecord, Tensor]:
        """The record and the video ``[T, H, W, 3]`` uint8 of one run, the same on every rank."""
        recorder = Recorder.of(settings, self.shape().event)

        def observe(event: Event) -> None:
            recorder(event)
            if progress is not None:
                progress(event)

        every = self.guidance_every if settings is self.flowcache else 1
        noise = self.mini.noise(self.chunks, self.seed)
        latents = generate_on_ranks(mesh, self.denoiser(every), settings, noise, observe=observe)
        video = self.mini.vae.decode(latents)[0].movedim(0, 3)
        record, preset = recorder.record(), self.reuse.preset
        if settings is self.flowcache and preset is not None:
            record = replace(record, tag=f"preset {preset.name}")
        return record, pixels(video).cpu()


def configure(options: argparse.Namespace, mini: MiniModel | MiniMagi) -> Demo:
    """Both runs from the command line. SettingError for whatever cannot work, before any work is done."""
    chunks, steps = QUICK if options.quick else LONG
    chunks = chunks if options.chunks is None else options.chunks
    steps = steps if options.steps is None else options.steps
    require_count("chunks", chunks, minimum=1, maximum=CHUNKS)
    require_count("steps", steps, minimum=1, maximum=STEPS)
    require_count("seed", options.seed, minimum=0, maximum=2**63 - 1)
    require_finite("guidance", options.guidance, minimum=0.0)
    subject = subject_of(mini)
    plan = subject.plans[0] if options.plan is None else options.plan
    require(plan in subject.plans, "plan", plan, f"{', '.join(subject.plans)} with model {options.model}")
    if not subject.presets:
        accepted = f"none with model {options.model}: --policy and its fields"
        require(options.preset is None, "preset", options.preset, accepted)
        options = argparse.Namespace(**{**vars(options), "policy": options.policy or Chunkwise.name})
    reuse = make_reuse(options, steps, subject.shift)
    if reuse.preset is not None and (options.guidance_every > 1 or options.low_frequencies):
        reuse = replace(reuse, preset=replace(reuse.preset, curve=()))  # measured without
    compressor, kept = make_compressor(options.compressor), options.kv_budget
    if kept == "half":
        kept = max(chunks / 2, 1.0 if compressor is None else compressor.min_budget)
    kv = KVSettings(budget=kept, compressor=compressor)
    vanilla = replace(subject.settings(plan, chunks, steps), policy=Never())
    anchor = LowFrequencies(options.low_frequencies) if options.low_frequencies else None
    sparse = sparse_of(options.sparse, options.density, options.model)
    flowcache = replace(vanilla, policy=reuse.policy, quantity=reuse.quantity, kv=kv, anchor=anchor, sparse=sparse)
    flowcache.notes()
    prompt = encode(mini, options.prompt)
    every = options.guidance_every
    demo = Demo(mini, prompt, vanilla, flowcache, reuse, options.guidance, chunks, options.seed, every)
    demo.denoiser(every)  # refuses what it cannot do
    return demo


@dataclass(frozen=True)
class Reuse:
    """What the FlowCache run reuses. warning: what stretching the preset changed."""

    policy: ReusePolicy
    quantity: Quantity
    preset: Preset | None = None
    warning: str | None = None


def make_reuse(options: argparse.Namespace, steps: int, shift: float | None) -> Reuse:
    """The preset with the given options put into it, or a policy of its own."""
    chosen = {"threshold": options.threshold, "warmup_steps": options.warmup}
    given = {key: value for key, value in chosen.items() if value is not None}
    if options.policy is not None or (options.threshold is not None and options.preset is None):
        require(options.preset is None, "preset", options.preset, "no preset together with --policy")
        return Reuse(changed(policy_from_text(options.policy or Chunkwise.name), given), Velocity())
    preset = load_preset(options.model, options.preset or DEFAULT_PRESET)
    # The default is for 50 steps and serves --quick too; a preset asked for by name is not changed unasked.
    preset, warning = preset.fit(steps, shift, rescale=options.rescale or options.preset is None)
    return Reuse(changed(preset.policy, given), preset.quantity, preset, warning)


def changed(policy: ReusePolicy, given: dict[str, Any]) -> ReusePolicy:
    """The policy with these fields of it changed; SettingError for one that it does not have."""
    values = {field.name: getattr(policy, field.name) for field in fields(policy)}
    return build_policy({"name": policy.name} | values | given)


def make_compressor(name: str | None) -> Any:
    if name is None:
        return None
    if name not in COMPRESSORS:
        raise SettingError("compressor", name, ", ".join(COMPRESSORS))
    return COMPRESSORS[name]()


def encode(mini: MiniModel | MiniMagi, prompt: str) -> Tensor:
    try:
        return mini.encode_prompt(prompt)
    except SettingError:
        raise
    except ValueError as error:
        raise SettingError("prompt", prompt, str(error)) from error


def described(options: argparse.Namespace, demo: Demo) -> dict[str, Any]:
    """The settings of the FlowCache run as report.json states them, defaults filled in."""
    run = demo.flowcache
    return {
        "prompt": options.prompt,
        "preset": demo.reuse.preset and demo.reuse.preset.name,
        "tag": settings_tag(run),
        "policy": run.policy.name,
        "threshold": getattr(run.policy, "threshold", None),
        "warmup_steps": run.policy.warmup_steps,
        "quantity": run.quantity.name,
        "kv_budget": run.kv.budget,
        "sparse": None if run.sparse is None else run.sparse.method.name,
        "compressor": None if run.kv.compressor is None else run.kv.compressor.name,
        "plan": run.plan.name,
        "chunks": demo.chunks,
        "steps": run.plan.steps,
        "shift": demo.subject.shift,
        "guidance": demo.guidance,
        "guidance_every": demo.guidance_every,
        "low_frequencies": 0.0 if run.anchor is None else run.anchor.strength,
        "seed": demo.seed,
        "clean_pass": run.clean_pass,
    }


def write(
    out: Path, fps: int, records: dict[str, RunRecord], videos: dict[str, Tensor], content: dict[str, Any]
) -> None:
    """All files into ``out``, or none: they belong together. Where the compute went only for steps in part."""
    labels = [f"{name}: {r.computed_steps} steps, {r.seconds or 0:.1f} s" for name, r in records.items()]
    with whole_folder(out) as folder:
        for name, video in videos.items():
            write_video(folder / f"{name}.mp4", video, fps=fps)
        write_video(folder / "compare.mp4", side_by_side(list(videos.values()), labels), fps=fps)
        figure.save(records[FLOWCACHE], folder / "map.png")
        if records[FLOWCACHE].places:
            places_figure.save(records[FLOWCACHE], videos[FLOWCACHE].numpy(), folder / WHERE)
        document.write_document(folder / "report.json", content)


def expected_psnr(demo: Demo, record: RunRecord) -> float | None:
    """dB that the preset's calibration found at the share of steps this run computed."""
    preset = demo.reuse.preset
    return preset.expected_psnr(record.computed_share, record.started) if preset else None


def remarks(demo: Demo, record: RunRecord) -> list[str]:
    """Where the run lies on the calibrated curve, and what was changed to make the preset fit."""
    found = [demo.reuse.warning] if demo.reuse.warning else []
    preset = demo.reuse.preset
    beside = [named([name]) for name in record.beside_reuse]
    expectation = preset.expectation(record.computed_share, record.started, beside) if preset else None
    if expectation is not None:
        found.append(expectation)
    return found


def summary(
    out: Path, records: dict[str, RunRecord], quality: Quality | None, machine: dict[str, Any], remarks: Sequence[str]
) -> str:
    """What the terminal shows at the end."""
    where = f"{out / WHERE}     where the compute went, over the video\n" if records[FLOWCACHE].places else ""
    processor = f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads"
    return f"""
{text.table(records, {FLOWCACHE: quality} if quality else None)}

{text.summary(records[FLOWCACHE])}
{"".join(f"{remark}{chr(10)}" for remark in remarks)}
Seconds are of this CPU ({processor}; torch {machine["torch"]}), after a warm-up run, without decoding.
PSNR and SSIM compare the two videos with one another.

{out / "compare.mp4"}   both side by side: shape, colour and path should be the same
{out / "map.png"}       which steps were reused, and the K/V memory against the budget
{where}{out / "report.json"}   all figures; {VANILLA}.mp4 and {FLOWCACHE}.mp4 beside it"""


def main(argv: Sequence[str]) -> int:
    """Run the demo. SettingError for what the user can put right, RankError when a rank fails, NotFiniteError when a
    video shows nothing."""
    options = parser().parse_args(argv)
    missing = [package for module, package in EXTRAS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise SettingError("demo", f"no {', '.join(missing)}", f"pip install {' '.join(missing)}")
    require_folder(options.out, names=FILES)
    demo = configure(options, load_model(options.model))
    shape = demo.mesh(options.ranks, None if options.mesh is None else mesh_from_text(options.mesh))
    every, alone = options.guidance_every, shape.size == 1
    require(alone or every == 1, "guidance-every", every, "1 on several ranks: they run their branches together")
    require_shareable(demo.flowcache, shape)
    require_finite("rank timeout", options.rank_timeout, minimum=0.1, maximum=LONGEST_WAIT)
    if shape.size > 1 and not started_as_rank():
        run_command(["demo", *argv], shape.size, options.rank_timeout)
        return 0
    with joined(shape, timeout=options.rank_timeout) as mesh:
        return compared(options, demo, mesh)


def compared(options: argparse.Namespace, demo: Demo, mesh: Mesh) -> int:
    """Both runs, on every rank; what came of them, on the first."""
    first = mesh.rank == 0
    demo.warm_up()
    records: dict[str, RunRecord] = {}
    videos: dict[str, Tensor] = {}
    for name, settings in ((VANILLA, demo.vanilla), (FLOWCACHE, demo.flowcache)):
        progress = None if options.json or not first else Progress(name, sys.stderr)
        records[name], videos[name] = demo.run(settings, progress, mesh)
    if not first:
        return 0
    faults = [f"run {name}: {record.fault}" for name, record in records.items() if record.fault]
    quality = None if faults else compare(videos[FLOWCACHE], videos[VANILLA])
    asked = {**described(options, demo), "expected_psnr": expected_psnr(demo, records[FLOWCACHE])}
    asked["mesh"] = str(mesh.shape)
    content = document.document(records, quality, asked)
    write(options.out, demo.mini.fps, records, videos, content)
    if options.json:
        print(json.dumps(content, allow_nan=False))
    else:
        notes = remarks(demo, records[FLOWCACHE]) + on_ranks_remark(mesh)
        print(summary(options.out, records, quality, content["machine"], notes))
    if faults:
        raise NotFiniteError(f"{'; '.join(faults)}. All files are written, such pixels black: {options.out}")
    return 0


def on_ranks_remark(mesh: Mesh) -> list[str]:
    """What several ranks change about the figures."""
    if mesh.shape.size == 1:
        return []
    shape = f"{mesh.shape.cfg} for guidance branches x {mesh.shape.heads} for attention heads"
    sent = f"{mesh.traffic.total / 1e6:.1f} MB sent to the others in both runs"
    return [f"{mesh.shape.size} ranks ({shape}). Seconds and K/V are those of one rank; {sent}."]
