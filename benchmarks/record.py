"""What recording a run costs: time on the mini model, bytes and time at SkyReels-V2's 540P.

    python dev.py bench record

Recorded and plain runs of the mini model alternate; processor's time of the process, so that what else runs on the
machine counts in neither. At 540P a denoiser that answers with noise goes through the released plan with guidance:
what the recording holds is counted, its time is measured, and set against forwards of the 1.3B model, whose FLOPs are
divided by what matrix products of its width reach on this machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flowcache_core.calibrate.record import Record, RecordState
from flowcache_core.calibrate.runs import Setup
from flowcache_core.cost import WanShape
from flowcache_core.denoiser import ChunkInput
from flowcache_core.dry_run.models import config_of
from flowcache_core.plan.staggered import staggered
from flowcache_core.presets import model_file
from flowcache_core.report.events import StepTaken
from flowcache_core.reuse.never import Never
from flowcache_core.schedule import Schedule, skyreels

from .mini_runs import HELD_OUT, run
from .results import save

REPEATS, SHORT = 9, Setup(chunks=2, steps=10)
MODEL, CHANNELS, HEIGHT, WIDTH = "skyreels-v2-1.3b-540p", 16, 68, 120
GEMM_ROWS = 2048


def main(argv: Sequence[str]) -> int:
    """Print the figures and save them."""
    figures = {"mini": mini(), "540p": large()}
    for name, found in figures.items():
        for key, value in found.items():
            print(f"{name:6}{key:28}{value:.6g}")
    print(f"\nsaved: {save('record', figures)}")
    return 0


def mini() -> dict[str, float]:
    """Medians over alternating runs; the share is that of pairs of runs one after the other."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    run(SHORT, HELD_OUT[:1])
    for number in range(2 * REPEATS):
        recorded = number % 2 == number // 2 % 2  # neither is always the later one
        begun = time.process_time()
        run(SHORT, HELD_OUT[:1], policy=Record() if recorded else Never())
        seconds[recorded].append(time.process_time() - begun)
    ratios = [there / here for here, there in zip(seconds[False], seconds[True], strict=True)]
    return {
        "plain seconds": statistics.median(seconds[False]),
        "recorded seconds": statistics.median(seconds[True]),
        "recorded over plain": statistics.median(ratios),
    }


@dataclass
class Noise:
    """Stands for a model: a velocity of both branches, of values that do not matter.

    spent: seconds in the guidance of the recorder, which every sampler's own step repeats.
    """

    made: Tensor = field(default_factory=lambda: torch.randn(2, 1, CHANNELS, 5, HEIGHT, WIDTH))

    def guide(self, velocity: Tensor, item: ChunkInput) -> Tensor:
        return velocity[0] + 5.0 * (velocity[1] - velocity[0])


def large() -> dict[str, float]:
    published = model_file(MODEL)["run"]
    steps, chunk = published["steps"], published["chunk_frames"]
    plan = staggered(published["base_frames"], chunk, steps, published["ar_step"])
    schedule: Schedule = skyreels(steps, published["shift"])
    model: Any = Noise()
    state = Record().begin(schedule, model)
    latents = torch.randn(1, CHANNELS, chunk, HEIGHT, WIDTH)
    most, spent, count = 0, 0.0, 0
    for tick in plan.ticks:
        for step in tick.steps:
            item = ChunkInput(
                plan.chunks[step.chunk], step.step, schedule.sigmas[step.step], schedule.timesteps[step.step], latents
            )
            begun = time.process_time()
            state.observe(item, model.made)
            spent, count = spent + time.process_time() - begun, count + 1
            if step.step == steps - 1:
                begun = time.process_time()
                state.finish(step.chunk)
                spent += time.process_time() - begun
        most = max(most, held(state))
    forward = seconds_of(flops_of_step(chunk * published["tokens_per_frame"], plan.frames))
    return {
        "bytes held": most,
        "seconds a step": spent / count,
        "forward, seconds at GEMM speed": forward,
        "share": spent / count / forward,
    }


def held(state: RecordState) -> int:
    """Bytes of everything that the recording keeps between two steps."""
    sketches = [sketch for rows in state.seen.values() for sketch in rows]
    tables = [table.total for table in (state.grams.first, state.grams.later) if table.total is not None]
    return sum(tensor.nbytes for tensor in (*sketches, *state.sketch.signs.values(), *tables))


def flops_of_step(tokens: int, frames: int) -> float:
    """Of both branches of one chunk's step that attends to no more than itself: the least that it may cost."""
    shape = WanShape.of(config_of(MODEL), 512)  # type: ignore[arg-type]
    event = StepTaken(0, 0, 0, 1.0, "compute", "no reuse", None, None, 2, tokens, tokens, 0, 0.0)
    return shape.total([event])


def seconds_of(flops: float) -> float:
    width = model_file(MODEL)["shape"]["dim"]
    rows, weight = torch.randn(GEMM_ROWS, width), torch.randn(width, width)
    taken = []
    for _ in range(5):
        begun = time.process_time()
        torch.mm(rows, weight)
        taken.append(time.process_time() - begun)
    return flops / (2 * GEMM_ROWS * width * width / min(taken))
