"""Sparse attention on held-out videos of a bundled model: error of one step, and whole videos against dense ones."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from flowcache_core.calibrate.head_samples import Measuring, Place, relative_error
from flowcache_core.calibrate.heads import spread_places
from flowcache_core.calibrate.runs import Pair, Setup, Specimen, generated, videos
from flowcache_core.denoiser import ChunkInput
from flowcache_core.kv.settings import KVSettings
from flowcache_core.presets.sparse import SparsePreset
from flowcache_core.report.quality import compare
from flowcache_core.report.record import RunRecord
from flowcache_core.sparse.attend import attend
from flowcache_core.sparse.cost import overall_density
from flowcache_core.sparse.forward import Dense
from flowcache_core.sparse.method import SparseMethod
from flowcache_core.sparse.settings import SparseSettings
from flowcache_core.sparse.top_k import TopK
from flowcache_core.sparse.window import Window
from flowcache_core.sparse.xattention import XAttention

from .meaning import JUDGES, right
from .mini_runs import run

DENSITIES = (0.5, 0.3)
"""Of the attention of the chunks that run sparse."""
VIDEOS = Setup(chunks=8, steps=20)
SCENES = Setup(chunks=6, steps=20, guidance=2.0)


def methods(preset: SparsePreset, density: float, few: bool = False) -> Iterator[tuple[str, SparseMethod]]:
    """What is compared, each at ``density`` of what it attends to: p for all heads, p per head, equal rows, nearest.

    few: without the nearest, which the dear model leaves out.
    """
    table = preset.method.table
    assert table is not None
    block, stride = table.subject.block, table.subject.stride
    yield "one p for all", XAttention(block, round(table.shared_p(density), 4), stride)
    yield "p per head", preset.at(density).shared_out
    yield "top-k", TopK(block, density, stride)
    if not few:
        yield "window", Window(block, density)


def in_run(method: SparseMethod, specimen: Specimen, setup: Setup) -> SparseSettings:
    """``method`` at its own density in the chunks that run sparse, which a run's settings state for the whole run."""
    settings = SparseSettings(method)
    if isinstance(method, TopK | Window):
        plan = specimen.settings(setup).plan
        forwards = tuple(settings.forwards(plan, 1, KVSettings()))
        settings = SparseSettings(replace(method, density=overall_density(forwards, method.density)))
    return settings


# -- one step ----------------------------------------------------------------------------------------------------------


@dataclass
class Whole:
    """A forward in which every head of every layer attends through ``method``."""

    method: SparseMethod
    densities: list[Tensor] = field(default_factory=list)

    def attend(
        self,
        layer: int,
        branches: range,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        dense: Dense,
        *,
        sage: bool = False,
        again: bool = False,
    ) -> Tensor:
        mask = self.method.mask(q, k, layer)
        self.densities.append(mask.density().mean())
        return attend(q, k, v, mask)


def one_step(
    specimen: Specimen,
    preset: SparsePreset,
    pairs: Sequence[Pair],
    setup: Setup,
    places: Sequence[Place],
    few: bool = False,
) -> list[dict[str, Any]]:
    """Mean relative error of the guided velocity when one forward of a dense run attends sparsely."""
    ways = {(name, density): method for density in DENSITIES for name, method in methods(preset, density, few)}
    found: dict[tuple[str, float], list[tuple[float, float]]] = {way: [] for way in ways}

    def measure(dense: Tensor, item: ChunkInput, forward: Callable[[object], Tensor], context: int) -> None:
        for way, method in ways.items():
            whole = Whole(method)
            error = relative_error(forward(whole), dense)
            found[way].append((error, float(torch.stack(whole.densities).mean())))

    for prompt, seed in pairs:
        denoiser = Measuring(specimen.denoiser([prompt], setup), places, measure)
        generated(specimen, setup, [(prompt, seed)], denoiser=denoiser)
    return [
        {
            "method": name,
            "asked": density,
            "density": statistics.fmean(share for _, share in values),
            "error": statistics.fmean(error for error, _ in values),
            "samples": len(values),
        }
        for (name, density), values in found.items()
    ]


# -- whole videos ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VideoRow:
    """density: of the attention in the chunks that ran sparse; overall: of all. flops: as a share of the dense run's.
    psnr: of every video against the dense one. meaning: share of what the prompts ask for that the videos show.
    """

    name: str
    density: float
    overall: float
    flops: float
    psnr: tuple[float, ...]
    ssim: float
    meaning: float | None
    served: float

    HEADER = (
        f"{'method':34} {'density':>7} {'overall':>7} {'FLOPs':>6} {'PSNR':>6} {'least':>6} {'SSIM':>6} {'meaning':>7}"
    )

    def __str__(self) -> str:
        meaning = "-" if self.meaning is None else f"{self.meaning:.3f}"
        figures = f"{statistics.fmean(self.psnr):6.2f} {min(self.psnr):6.2f} {self.ssim:6.3f} {meaning:>7}"
        return f"{self.name:34} {self.density:7.3f} {self.overall:7.3f} {self.flops:6.1%} {figures}"

    def row(self) -> dict[str, Any]:
        return {**asdict(self), "psnr_mean": statistics.fmean(self.psnr)}


class Videos:
    """Runs of one setup against the dense one of the same pairs."""

    def __init__(self, specimen: Specimen, pairs: Sequence[Pair], setup: Setup = VIDEOS, batch: int = 6) -> None:
        self.specimen, self.pairs, self.setup, self.batch = specimen, pairs, setup, batch
        self.full, self.reference = self.made()

    def made(self, **changes: Any) -> tuple[list[RunRecord], list[Tensor]]:
        parts = [self.pairs[i : i + self.batch] for i in range(0, len(self.pairs), self.batch)]
        runs = [run(self.setup, part, of=self.specimen, **changes) for part in parts]
        return [record for record, _ in runs], videos(self.specimen, torch.cat([latents for _, latents in runs]))

    def row(self, name: str, **changes: Any) -> VideoRow:
        records, clips = self.made(**changes)
        scored = [compare(clip, reference) for clip, reference in zip(clips, self.reference, strict=True)]
        densities = [event for record in records for event in record.densities]
        pairs = sum(event.tokens * event.context_tokens for event in densities)
        kept = sum(event.tokens * event.context_tokens * event.density for event in densities)
        masks = sum(event.masks_made + event.masks_served for event in densities)
        return VideoRow(
            name=name,
            density=kept / pairs if pairs else 1.0,
            overall=statistics.fmean(record.attention_density or 1.0 for record in records),
            flops=sum(r.flops or 0.0 for r in records) / sum(r.flops or 1.0 for r in self.full),
            psnr=tuple(round(quality.psnr, 3) for quality in scored),
            ssim=statistics.median(quality.ssim for quality in scored),
            meaning=right(JUDGES[self.specimen.name](self.pairs, clips)),
            served=sum(event.masks_served for event in densities) / masks if masks else 0.0,
        )


def places(specimen: Specimen, setup: Setup, count: int) -> tuple[Place, ...]:
    return spread_places(specimen.settings(setup), 2, count)
