"""Runs of the bundled mini model that benchmarks share: prompt-seed pairs, settings, videos, quality."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from flowcache_core.cost import WanShape
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.mini import MiniModel, load_mini
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.plan import PLANS
from flowcache_core.report.quality import Quality, compare
from flowcache_core.report.record import Recorder, RunRecord
from flowcache_core.report.refusing import refusing
from flowcache_core.report.video import pixels
from flowcache_core.reuse.base import ReusePolicy
from flowcache_core.schedule import shifted
from flowcache_core.solvers.base import Solver
from flowcache_core.solvers.euler import Euler

Pair = tuple[str, int]
PROMPTS = (
    "a red circle moving right",
    "a green square moving left",
    "a blue triangle moving up",
    "a yellow circle moving down",
    "a purple square moving right",
    "a white triangle moving left",
    "a red square moving up",
    "a green circle moving down",
)
CHUNKS, STEPS, GUIDANCE = 8, 50, 3.0


def pairs(first_seed: int, count: int = 16) -> tuple[Pair, ...]:
    """``count`` prompt-seed pairs; every prompt comes with seeds of its own."""
    return tuple((PROMPTS[i % len(PROMPTS)], first_seed + i) for i in range(count))


HELD_OUT = pairs(1000)


@dataclass(frozen=True)
class Setup:
    """Plan and solver of a comparison: what the methods have in common."""

    name: str = "blockwise"
    chunks: int = CHUNKS
    steps: int = STEPS
    guidance: float = GUIDANCE
    solver: Solver = Euler()

    def settings(self, mini: MiniModel, **changes: object) -> EngineSettings:
        frames, chunk = self.chunks * mini.chunk_frames, mini.chunk_frames
        plan = PLANS[self.name].abreast(chunk, self.steps).plan(frames, self.steps)
        base = EngineSettings(plan, shifted(self.steps, mini.shift), solver=self.solver, clean_pass=True)
        return replace(base, **changes)  # type: ignore[arg-type]


@cache
def mini() -> MiniModel:
    model = load_mini()
    for module in model.vae.modules():
        if isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # faster on a CPU
    return model


def shape(model: MiniModel) -> WanShape:
    c = model.transformer.config
    tokens = model.encode_prompt("").shape[1]
    return WanShape(c.dim, c.ffn_dim, c.num_layers, tokens, c.text_dim, c.in_dim * 4)


def run(
    setup: Setup, batch: Sequence[Pair], *, kind: type[WanDenoiser] = WanDenoiser, **changes: object
) -> tuple[RunRecord, Tensor]:
    """One engine run over a batch of pairs. Returns its record and the latents ``[len(batch), 16, F, 8, 8]``."""
    model = mini()
    settings = setup.settings(model, **changes)
    prompt = torch.cat([model.encode_prompt(text) for text, _ in batch])
    nothing = model.encode_prompt("").expand_as(prompt)
    denoiser = kind(model.transformer, {0: (prompt, nothing)}, setup.guidance)
    noise = torch.cat([model.noise(setup.chunks, seed) for _, seed in batch])
    recorder = Recorder.of(settings, shape(model).event)
    latents = generate(denoiser, settings, noise, observe=refusing(recorder))
    return recorder.record(), latents


Run = Callable[..., tuple[RunRecord, Tensor]]


@torch.no_grad()
def videos(latents: Tensor) -> list[Tensor]:
    """Decoded videos, each ``[T, 64, 64, 3]`` uint8; four at a time, which costs little more than one."""
    decode: Callable[[Tensor], Tensor] = mini().vae.decode
    clips = torch.cat([decode(part) for part in latents.split(4)]).movedim(1, 4)
    return list(pixels(clips))


@dataclass(frozen=True)
class Row:
    """One configuration's figures over all pairs: medians, and the 10th percentile of PSNR."""

    name: str
    computed: float
    flops: float
    psnr: float
    psnr_p10: float
    ssim: float
    flicker: float

    @classmethod
    def of(cls, name: str, records: Sequence[RunRecord], full: RunRecord, qualities: Sequence[Quality]) -> Row:
        decibels = sorted(quality.psnr for quality in qualities)
        return cls(
            name=name,
            computed=statistics.fmean(record.computed_steps for record in records) / full.total_steps,
            flops=statistics.fmean(record.flops or 0.0 for record in records) / (full.flops or 1.0),
            psnr=statistics.median(decibels),
            psnr_p10=statistics.quantiles(decibels, n=10, method="inclusive")[0] if len(decibels) > 1 else decibels[0],
            ssim=statistics.median(quality.ssim for quality in qualities),
            flicker=statistics.median(quality.flicker for quality in qualities),
        )

    HEADER = f"{'method':44} {'computed':>8} {'FLOPs':>6} {'PSNR':>6} {'p10':>6} {'SSIM':>6} {'flicker':>7}"

    def __str__(self) -> str:
        figures = f"{self.psnr:6.2f} {self.psnr_p10:6.2f} {self.ssim:6.3f} {self.flicker:7.4f}"
        return f"{self.name:44} {self.computed:8.1%} {self.flops:6.1%} {figures}"


def looks_at_content(changes: dict[str, object]) -> bool:
    """Whether the decisions depend on the latents, so that pairs must not share a batch."""
    policy = changes.get("policy")
    return isinstance(policy, ReusePolicy) and not policy.content_free


class Comparison:
    """Methods against the uncached run of the same setup and pairs. run: what makes one, as :func:`run` does."""

    def __init__(self, setup: Setup, batch: Sequence[Pair], *, run: Run = run, **base: object) -> None:
        self.setup, self.batch, self.run, self.base = setup, batch, run, base
        self.full, latents = run(setup, batch, **base)
        self.reference = videos(latents)

    def row(self, name: str, setup: Setup | None = None, **changes: object) -> Row:
        """Figures of one method; ``setup`` when it needs another one (fewer steps)."""
        setup, changes = setup or self.setup, {**self.base, **changes}
        groups = [[pair] for pair in self.batch] if looks_at_content(changes) else [list(self.batch)]
        return self.score(name, [self.run(setup, group, **changes) for group in groups])

    def score(self, name: str, runs: Sequence[tuple[RunRecord, Tensor]]) -> Row:
        """Figures of runs that cover the pairs in their order."""
        records, outcomes = [record for record, _ in runs], videos(torch.cat([latents for _, latents in runs]))
        scored = [compare(video, reference) for video, reference in zip(outcomes, self.reference, strict=True)]
        return Row.of(name, records, self.full, scored)
