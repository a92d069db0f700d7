"""Runs of the bundled models that benchmarks share: held-out prompt-seed pairs, records, quality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from flowcache_core.calibrate.bundled import Mini, MiniMagi, MiniWan, Scenes
from flowcache_core.calibrate.runs import Pair, Setup, Specimen, Spread, generated, paired, videos
from flowcache_core.cost import MagiShape, ModelShape, WanShape
from flowcache_core.denoiser import Denoiser
from flowcache_core.mini import MiniModel
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.report.quality import Quality, compare
from flowcache_core.report.record import Recorder, RunRecord
from flowcache_core.reuse.base import ReusePolicy

from .meaning import JUDGES, Rates, held_out_scenes, merged_rates, right

# What no calibration has seen; flowcache_core/calibrate/bundled.py has the prompts of those.
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
LONG = Setup(chunks=8)


def pairs(first_seed: int, count: int = 16, model: str = "mini") -> tuple[Pair, ...]:
    """``count`` prompt-seed pairs; every prompt comes with seeds of its own."""
    prompts = PROMPTS if model == "mini" else [scene.prompt for scene in held_out_scenes(count)]
    return paired(prompts, first_seed, count)


HELD_OUT = pairs(1000)


@dataclass(frozen=True)
class Method:
    """One point of one method: engine settings (and ``kind``, see :func:`run`), or another number of steps.

    measured: settings that must be measured first.
    """

    name: str
    point: str
    changes: dict[str, Any] = field(default_factory=dict)
    setup: Setup | None = None
    measured: Callable[[], dict[str, Any]] | None = None

    def settings(self) -> dict[str, Any]:
        return self.changes if self.measured is None else {**self.changes, **self.measured()}

    @property
    def title(self) -> str:
        return f"{self.name} {self.point}"


MODELS: dict[str, type[MiniWan]] = {model.name: model for model in (Mini, Scenes)}


@cache
def specimen(model: str = "mini") -> MiniWan:
    return MODELS[model]()


@cache
def magi() -> MiniMagi:
    return MiniMagi()


def mini() -> MiniModel:
    return specimen().model


def shape(of: Specimen) -> ModelShape:
    """What FLOPs are counted with."""
    if isinstance(of, MiniMagi):
        config = of.model.transformer.config
        return MagiShape.of(config, text_tokens=config.text_len)
    assert isinstance(of, MiniWan)
    return WanShape.of(of.model.transformer.config, of.model.encode_prompt("").shape[1])


def magi_setup(chunks: int, steps: int) -> Setup:
    return Setup("window", chunks=chunks, steps=steps, guidance=1.0)


def run(
    setup: Setup,
    batch: Sequence[Pair],
    *,
    of: Specimen | None = None,
    kind: type[WanDenoiser] = WanDenoiser,
    **changes: Any,
) -> tuple[RunRecord, Tensor]:
    """One engine run over a batch of pairs, of the mini model if nothing else is asked for.

    kind: a denoiser of other behaviour over a model of Wan's architecture. Returns the record and the latents
    ``[len(batch), 16, F, h, w]``.
    """
    of = of or specimen()
    recorder = Recorder.of(of.settings(setup, **changes), shape(of).event)
    denoiser: Denoiser | None = None
    if kind is not WanDenoiser:
        usual = of.denoiser([prompt for prompt, _ in batch], setup)
        assert isinstance(usual, WanDenoiser)
        denoiser = kind(usual.transformer, usual.prompts, usual.guidance)
    latents = generated(of, setup, batch, denoiser=denoiser, observe=recorder, **changes)
    return recorder.record(), latents


@dataclass(frozen=True)
class Row:
    """One configuration's figures over all pairs: medians, and the 10th percentile of PSNR.

    computed: steps computed, over those of the run it is held against, which may have more. right: share of right
    answers to whether the videos do what their prompts say; rates: by question (meaning.py).
    """

    name: str
    computed: float
    flops: float
    psnr: float
    psnr_p10: float
    ssim: float
    flicker: float
    right: float | None = None
    rates: Rates = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        records: Sequence[RunRecord],
        full: RunRecord,
        qualities: Sequence[Quality],
        rates: Rates | None = None,
    ) -> Row:
        psnr = Spread.of(quality.psnr for quality in qualities)
        return cls(
            name=name,
            computed=Spread.of(r.computed_share * r.total_steps for r in records).mean / full.total_steps,
            flops=Spread.of(record.flops or 0.0 for record in records).mean / (full.flops or 1.0),
            psnr=psnr.median,
            psnr_p10=psnr.p10,
            ssim=Spread.of(quality.ssim for quality in qualities).median,
            flicker=Spread.of(quality.flicker for quality in qualities).median,
            right=right(rates or {}),
            rates=rates or {},
        )

    @classmethod
    def merged(cls, name: str, rows: Sequence[Row]) -> Row:
        """Of rows of one pair each, in any order."""
        psnr, rates = Spread.of(row.psnr for row in rows), merged_rates([row.rates for row in rows])
        return cls(
            name=name,
            computed=Spread.of(row.computed for row in rows).mean,
            flops=Spread.of(row.flops for row in rows).mean,
            psnr=psnr.median,
            psnr_p10=psnr.p10,
            ssim=Spread.of(row.ssim for row in rows).median,
            flicker=Spread.of(row.flicker for row in rows).median,
            right=right(rates),
            rates=rates,
        )

    HEADER = (
        f"{'method':44} {'computed':>8} {'FLOPs':>6} {'PSNR':>6} {'p10':>6} {'SSIM':>6} {'flicker':>7} {'right':>6}"
    )

    def __str__(self) -> str:
        meant = "" if self.right is None else f" {self.right:6.1%}"
        figures = f"{self.psnr:6.2f} {self.psnr_p10:6.2f} {self.ssim:6.3f} {self.flicker:7.4f}{meant}"
        return f"{self.name:44} {self.computed:8.1%} {self.flops:6.1%} {figures}"


def looks_at_content(changes: dict[str, object]) -> bool:
    """Whether the decisions depend on the latents, so that pairs must not share a batch."""
    policy = changes.get("policy")
    return isinstance(policy, ReusePolicy) and not policy.content_free


class Comparison:
    """Methods against the uncached run of the same setup and pairs."""

    def __init__(self, setup: Setup, batch: Sequence[Pair], *, of: Specimen | None = None, **base: Any) -> None:
        self.setup, self.batch, self.specimen, self.base = setup, batch, of or specimen(), base
        self.full, latents = run(setup, batch, of=self.specimen, **base)
        self.reference = videos(self.specimen, latents)

    def rates(self, outcomes: Sequence[Tensor]) -> Rates:
        """How often videos of the pairs, in their order, do what the prompts say."""
        return JUDGES[self.specimen.name](self.batch, outcomes)

    def row(self, name: str, setup: Setup | None = None, **changes: Any) -> Row:
        """Figures of one method; ``setup`` when it needs another one (fewer steps)."""
        setup, changes = setup or self.setup, {**self.base, **changes}
        groups = [[pair] for pair in self.batch] if looks_at_content(changes) else [list(self.batch)]
        return self.score(name, [run(setup, group, of=self.specimen, **changes) for group in groups])

    def score(self, name: str, runs: Sequence[tuple[RunRecord, Tensor]]) -> Row:
        """Figures of runs that cover the pairs in their order."""
        records = [record for record, _ in runs]
        outcomes = videos(self.specimen, torch.cat([latents for _, latents in runs]))
        scored = [compare(video, reference) for video, reference in zip(outcomes, self.reference, strict=True)]
        return Row.of(name, records, self.full, scored, self.rates(outcomes))
