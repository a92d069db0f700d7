"""A tenth of the K/V bytes: what is left of them to choose, and what it costs, from 16 to 40 chunks.

    python dev.py bench tenth
    python dev.py bench tenth --model scenes --part next

Times are bytes of the whole history in 16 bits over all that a run holds and reads into. Measures:

``next``: the history is a true video, the model makes the chunk behind it. How near that comes to the true one is
quality by itself, at lengths too at which all of the history is no good reference; how near to what all of the
history gives, is given too. ``whole``: videos from noise, against the run that keeps all. Beside both stands what a
harmless change loses (K/V in 16 bits where the model has 32). ``equal`` is ``next`` for every compressor at equal
budgets, 1/2, 1/4 and 1/8 of 8 chunks.
Rows are saved as they are made; a second call goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from statistics import median

import torch
from torch import Tensor

from flowcache_core.calibrate.bundled import MiniWan
from flowcache_core.calibrate.runs import Pair, Setup, videos
from flowcache_core.commands.arguments import Parser
from flowcache_core.engine import generate
from flowcache_core.errors import SettingError, require_count
from flowcache_core.kv.auto import AutoKV
from flowcache_core.kv.compressor import Compressor
from flowcache_core.kv.headwise import HeadWise
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.sink_window import SinkWindow
from flowcache_core.kv.size import read_bytes, run_bytes
from flowcache_core.kv.spec import KVSpec
from flowcache_core.kv.storage import Int2, Int4, Int8, Plain, Storage
from flowcache_core.mini import data
from flowcache_core.mini_scenes.data import first_frame, render
from flowcache_core.plan import blockwise
from flowcache_core.plan.base import Plan
from flowcache_core.report.refusing import refusing
from flowcache_core.report.video import pixels

from .kv import CHUNKS, choices, fitted, psnr
from .meaning import JUDGES, held_out_scenes, right
from .mini_runs import LONG, MODELS, pairs, run, specimen
from .results import save, stored

LENGTHS = (16, 24, 40)
TIMES = (2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
PARTS = ("next", "whole", "equal")
PAIRS, STEPS = {"mini": 16, "scenes": 4}, {"mini": 8, "scenes": 8}
CLIP_SEED = 2**43 + 1
"""Of the true videos: neither training nor calibration draws from it."""
STEP = 0.25
TRAINED = 7.0
"""Chunks of history in the longest clips that the bundled models were trained on."""
KINDS: dict[str, tuple[type[Compressor], Storage]] = {
    "sink-window": (SinkWindow, Plain()),
    "head-wise": (HeadWise, Plain()),
    "head-wise, int4": (HeadWise, Int4()),
    "head-wise, int2, newest chunk exact": (HeadWise, Int2(exact_recent=1.0)),
}


@dataclass(frozen=True)
class Row:
    """One setting at one length. times: fewer bytes than the whole history in 16 bits. truth: dB to the true chunk,
    full: dB to the run that keeps all; medians. right: of what prompts ask for."""

    part: str
    chunks: int
    name: str
    kept: str
    times: float
    full: float
    truth: float | None = None
    right: float | None = None

    def __str__(self) -> str:
        truth = " " * 7 if self.truth is None else f"{self.truth:7.2f}"
        meant = "" if self.right is None else f" {self.right:6.1%}"
        what = f"{self.part:6}{self.chunks:4} {self.name:46} {self.kept:20}"
        return f"{what} {self.times:6.1f} {self.full:7.2f} {truth}{meant}"


@dataclass(frozen=True)
class Bytes:
    """Of one video of so many chunks, in a model of 16 bits."""

    spec: KVSpec
    plan: Plan

    @cached_property
    def whole(self) -> int:
        return run_bytes(self.spec, KVSettings(), self.plan)

    def times(self, kv: KVSettings) -> float:
        return self.whole / run_bytes(self.spec, kv, self.plan)

    def parts(self, kv: KVSettings) -> str:
        """Active chunks, the buffer that packed layers are read into and the history, in per cent of the whole."""
        active = self.plan.chunks[0].frames / self.plan.frames
        read = read_bytes(self.spec, kv, self.plan) / self.whole
        return f"active {active:.1%}, read {read:.1%}, history {1 / self.times(kv) - active - read:.1%}"

    def largest(self, kind: type[Compressor], storage: Storage, times: float) -> KVSettings | None:
        """The most that may be kept; None where nothing fits."""
        found = None
        for quarters in range(4, 4 * len(self.plan.chunks)):
            budget = quarters * STEP
            try:
                kv = KVSettings(budget, fitted(kind, budget), storage=storage)
            except SettingError:
                continue
            if self.times(kv) < times:
                return found
            found = kv
        return found

    def choices(self, times: Sequence[float]) -> Iterator[tuple[str, KVSettings]]:
        """What keeps all, and what fits so many times."""
        yield "16 bits", KVSettings(dtype=torch.bfloat16)
        yield "int8", KVSettings(storage=Int8())
        yield "int4", KVSettings(storage=Int4())
        if len(self.plan.chunks) - 1 > TRAINED:
            yield "sink-window, as trained", KVSettings(TRAINED, SinkWindow())
        for one in times:
            for name, (kind, storage) in KINDS.items():
                if kv := self.largest(kind, storage, one):
                    yield f"{name}, {one:g} times", kv
            for heads, who in ((False, "auto by layer"), (True, "auto")):
                try:
                    chosen = AutoKV(megabytes=self.whole / one / 1e6, heads=heads).settled(self.spec, self.plan)
                except SettingError:
                    continue
                yield f"{who}, {one:g} times", chosen


def bytes_of(of: MiniWan, setup: Setup) -> Bytes:
    spec = of.denoiser(["a"], setup).kv_spec(of.noise(setup.chunks, 0))
    return Bytes(replace(spec, dtype=torch.bfloat16, move=None), of.settings(setup).plan)


def kept(kv: KVSettings) -> str:
    """Budget and, where nobody has said so, what was chosen."""
    if not kv.budgets:
        return "all"
    low, high = min(kv.budgets), max(kv.budgets)
    assert kv.compressor is not None
    return f"{low:g}" if low == high else f"{low:g} to {high:g} {kv.compressor.name} {kv.storage.name}"


class Next:
    """True videos as history, and the chunk that follows, made and true."""

    def __init__(self, of: MiniWan, setup: Setup, count: int, part: str) -> None:
        self.of, self.setup, self.part = of, setup, part
        frames = first_frame(setup.chunks)
        if of.name == "mini":
            clips = data.random_clips(count, CLIP_SEED)
            self.prompts, true = [clip.prompt for clip in clips], data.render(clips, frames)
        else:
            scenes = held_out_scenes(count)
            self.prompts, true = [scene.prompt for scene in scenes], render(scenes, frames)
        self.last = frames - first_frame(setup.chunks - 1)
        self.true = pixels(true[:, :, -self.last :].movedim(1, 4))
        with torch.no_grad():
            self.latents = torch.cat([of.model.vae.encode(one) for one in true.split(1)])
        self.full = self.made(KVSettings())

    def made(self, kv: KVSettings) -> Tensor:
        """The last chunk's pictures ``[n, T, H, W, 3]`` uint8."""
        setup, of, chunk = self.setup, self.of, self.of.model.chunk_frames
        given = (setup.chunks - 1) * chunk
        plan = blockwise(setup.chunks * chunk, chunk, setup.steps, given)
        noise = torch.cat([of.noise(setup.chunks, CLIP_SEED + n) for n in range(len(self.prompts))])
        found = []
        for first in range(0, len(self.prompts), of.batch):
            own = slice(first, first + of.batch)
            denoiser, settings = of.denoiser(self.prompts[own], setup), of.settings(setup, plan=plan, kv=kv)
            prefix = self.latents[own, :, :given]
            found.append(generate(denoiser, settings, noise[own], prefix=prefix, observe=refusing(lambda event: None)))
        return self.shown(torch.cat([self.latents[:, :, :given], torch.cat(found)[:, :, -chunk:]], 2))

    @torch.no_grad()
    def shown(self, latents: Tensor) -> Tensor:
        """The last chunk's pictures, decoded with the two chunks before it."""
        seen = latents[:, :, -3 * self.of.model.chunk_frames :]
        return pixels(torch.cat([self.of.decode(part) for part in seen.split(4)]).movedim(1, 4))[:, -self.last :]

    def row(self, name: str, times: float, kv: KVSettings) -> Row:
        made = self.full if name == "all" else self.made(kv)
        near = [median(map(psnr, made, other)) for other in (self.full, self.true)]
        return Row(self.part, self.setup.chunks, name, kept(kv), times, *near)


class Whole:
    """Videos from noise."""

    def __init__(self, of: MiniWan, setup: Setup, batch: Sequence[Pair]) -> None:
        self.of, self.setup, self.batch = of, setup, batch
        self.full = self.made(KVSettings())

    def made(self, kv: KVSettings) -> list[Tensor]:
        return videos(self.of, run(self.setup, self.batch, of=self.of, kv=kv)[1])

    def row(self, name: str, times: float, kv: KVSettings) -> Row:
        made = self.full if name == "all" else self.made(kv)
        shown = right(JUDGES[self.of.name](self.batch, made))
        near = median(map(psnr, made, self.full))
        return Row("whole", self.setup.chunks, name, kept(kv), times, near, right=shown)


@torch.no_grad()
def main(argv: Sequence[str]) -> int:
    """Print the rows and save them."""
    p = Parser("tenth", description=__doc__)
    p.add_argument("--model", default="mini", choices=list(MODELS))
    p.add_argument("--part", choices=PARTS, help="only this one")
    p.add_argument("--chunks", type=int, nargs="+", default=LENGTHS, help=f"lengths (default: {LENGTHS})")
    p.add_argument("--times", type=float, nargs="+", default=TIMES, help=f"fewer bytes (default: {TIMES})")
    p.add_argument("--pairs", type=int, help=f"videos (default: {PAIRS})")
    p.add_argument("--steps", type=int, help=f"denoising steps of a chunk (default: {STEPS})")
    options = p.parse_args(argv)
    of = specimen(options.model)
    count = PAIRS[of.name] if options.pairs is None else options.pairs
    steps = STEPS[of.name] if options.steps is None else options.steps
    require_count("pairs", count, minimum=1, maximum=100)
    require_count("steps", steps, minimum=2, maximum=1000)
    for chunks in options.chunks:
        require_count("chunks", chunks, minimum=4, maximum=400)
    name = "tenth" if of.name == "mini" else f"tenth-{of.name}"
    content = stored(name) or {"model": of.name, "rows": []}
    print(f"{'part':6}{'':4} {'setting':46} {'budget':20} {'times':>6} {'full':>7} {'truth':>7}  right")
    for part in PARTS if options.part is None else (options.part,):
        for chunks in options.chunks if part != "equal" else (CHUNKS,):
            setup = replace(LONG, chunks=chunks, steps=steps, guidance=of.default.guidance)
            sizes = bytes_of(of, setup)
            asked = {"part": part, "chunks": chunks, "pairs": count, "steps": steps}
            known = [row["name"] for row in content["rows"] if asked.items() <= row.items()]
            runs = Whole(of, setup, pairs(1000, count, of.name)) if part == "whole" else Next(of, setup, count, part)
            found = choices("compressor") if part == "equal" else sizes.choices(options.times)
            for title, kv in (("all", KVSettings()), *found):
                if title in known:
                    continue
                row, parts = runs.row(title, sizes.times(kv), kv), sizes.parts(kv)
                print(row, f"  {parts}", flush=True)
                content["rows"].append({**asked, **asdict(row), "bytes": parts})
                save(name, content)
    print(f"\nsaved: benchmarks/results/{name}.json")
    return 0
