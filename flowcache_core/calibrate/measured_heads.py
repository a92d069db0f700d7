"""Heads measured in a run that somebody samples anyway: what is asked for, and what the run has left."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ..denoiser import ChunkInput, Denoiser
from ..errors import SettingError, require, require_count
from ..kv.settings import KVSettings
from ..kv.spec import KVSpec
from ..options import option, replaced
from ..plan.base import Plan
from ..presets.own import OwnHeads
from ..presets.sparse import sparse_row
from ..sparse.antidiagonal import require_stride, stride_option
from ..sparse.calibrated import Calibrated
from ..sparse.head_budget import predicted
from ..sparse.head_errors import CANDIDATES, HeadErrors, Sample, Subject
from ..sparse.head_table import HeadTable
from ..sparse.method import SparseMethod
from ..sparse.settings import SparseSettings
from ..sparse.xattention import require_p
from .head_samples import Measuring, Place, measure_sample, samples_of

VIDEOS = 6  # after so many the steps that are measured begin again
TOLD_EVERY = 2.0  # seconds


@dataclass(frozen=True)
class MeasureHeads:
    """Measure every head of the model in one run, whose own steps stay dense.

    samples: steps of the video at which is measured, of those that ``dense_chunks`` and ``dense_steps`` would let be
    sparse (see :class:`.sparse.settings.SparseSettings`). candidates: p of XAttention, ascending; 1, all of a head's
    attention, needs no measuring and is always among them.
    """

    name: ClassVar[str] = "measure heads"

    block: int = replaced(SparseMethod, "block", 128)
    stride: int = stride_option()
    samples: int = option(
        4,
        "Steps of the video at which every head is measured: heads x shares x samples forwards of a chunk.",
        minimum=1,
        maximum=1000,
        place=40,
    )
    candidates: tuple[float, ...] = option(
        CANDIDATES[:-1],
        "Shares of its attention that every head is tried with, ascending. Three or four are enough for a look; what "
        "lies between them cannot be chosen later.",
        label="shares",
        place=41,
    )
    dense_chunks: int = 2
    dense_steps: int = 0

    def __post_init__(self) -> None:
        require_count("block", self.block, minimum=1)
        require_stride(self.block, self.stride)
        require_count("samples", self.samples, minimum=1, maximum=1000)
        require_count("dense_chunks", self.dense_chunks, minimum=0)
        require_count("dense_steps", self.dense_steps, minimum=0)
        for p in self.candidates:
            require_p("shares", p)
        lower = tuple(p for p in self.candidates if p < 1)
        ascending = len(lower) > 0 and all(a < b for a, b in zip(self.candidates, self.candidates[1:], strict=False))
        require(ascending, "shares", self.candidates, "at least one below 1, ascending")
        object.__setattr__(self, "candidates", (*lower, 1.0))

    def check(self, attention: str) -> None:
        """SettingError for a run whose ``attention`` leaves nothing to measure."""
        accepted = "block-causal: a window that is one has no masks by chunk"
        require(attention == "block-causal", "attention", attention, accepted)

    def cells(self, spec: KVSpec) -> int:
        """Forwards that one sample takes: with p 1 a head's output is known."""
        return spec.layers * spec.heads * sum(p < 1 for p in self.candidates)

    def subject(self, model: str, spec: KVSpec) -> Subject:
        """model: SHA-256 of the weights."""
        return Subject(model, spec.layers, spec.heads, self.block, self.stride, self.candidates)

    def places(
        self, plan: Plan, tokens_per_frame: int, kv: KVSettings, video: int, recache: Collection[int] = ()
    ) -> tuple[Place, ...]:
        """Where the ``video``-th video is measured. kv, recache: of its run, see :class:`..engine.EngineSettings`.
        SettingError where nothing is sparse, or a block does not fit."""
        tokens = max(chunk.frames for chunk in plan.chunks) * tokens_per_frame
        require(self.block <= tokens, "block", self.block, f"at most the {tokens} tokens of a chunk")
        accepted = f"less than the {plan.steps} steps of this video"
        require(self.dense_steps < plan.steps, "dense_steps", self.dense_steps, accepted)
        settings = SparseSettings(dense_chunks=self.dense_chunks, dense_steps=self.dense_steps)
        sparse = settings.sparse_steps(plan, tokens_per_frame, kv, recache)
        steps = settings.contexts(plan, tokens_per_frame, kv, recache)
        longest = max(context for _, _, step, context in steps if step >= self.dense_steps) / tokens
        accepted = f"less than the longest context, which has {longest:g} chunks here: a longer video, or more K/V"
        require(len(sparse) > 0, "dense_chunks", self.dense_chunks, accepted)
        return samples_of(sparse, self.samples, video % VIDEOS, VIDEOS)


@dataclass
class MeasuredHeads:
    """What runs have left, this one the last. evidence: of this run, as a preset states it. path: where all is kept as
    it comes. video: a number that only this video has. total, done: measurements of this run.
    """

    errors: HeadErrors
    evidence: Mapping[str, Any]
    video: int
    path: Path | None = None
    total: int = 0
    done: int = 0
    told: float = field(default_factory=time.monotonic)

    @classmethod
    def resumed(cls, subject: Subject, evidence: Mapping[str, Any], video: int, path: Path | None) -> MeasuredHeads:
        """With what earlier runs of this ``subject`` have measured. SettingError for a file that is none."""
        errors = HeadErrors(subject) if path is None else HeadErrors.resume(path, subject)
        return cls(errors, evidence, video, path)

    @property
    def number(self) -> int:
        """Of this video among those that were measured, from 0."""
        known = list(dict.fromkeys(sample.seed for sample in self.errors.error))
        return known.index(self.video) if self.video in known else len(known)

    @property
    def videos(self) -> int:
        """That have a sample which is complete."""
        return len({sample.seed for sample in self.errors.complete})

    def measuring(
        self,
        denoiser: Denoiser,
        places: tuple[Place, ...],
        tell: Callable[[int, int], None],
        rewind: Callable[[], Callable[[], None]] = lambda: lambda: None,
    ) -> Measuring:
        """``denoiser``, measured in at ``places``. tell: called with (measured, all) now and then; may end the run."""
        cells = self.errors.subject.cells
        self.total = cells * len(places)

        def measure(dense: Tensor, item: ChunkInput, forward: Callable[[object], Tensor], context: int) -> None:
            sample = Sample(self.video, item.chunk.index, item.step, context)
            self.done += cells - len(list(self.errors.missing(sample)))

            def each() -> None:
                self.done += 1
                if time.monotonic() - self.told > TOLD_EVERY:
                    self.told = time.monotonic()
                    tell(self.done, self.total)

            measure_sample(self.errors, sample, dense, forward, self.path, each)
            tell(self.done, self.total)

        return Measuring(denoiser, places, measure, rewind)

    def table(self) -> HeadTable:
        """SettingError (field "samples") before one is complete."""
        return HeadTable.of(self.errors)

    def preset(self, name: str, density: float) -> OwnHeads:
        """The preset that is recommended at ``density``. SettingError where no table is so sparse."""
        table = self.table()
        method = Calibrated(density=density, table=table)
        try:
            method.shared_out  # noqa: B018 - refuses a density that no table reaches
        except SettingError as error:
            raise SettingError("density", density, error.accepted) from error
        layers, heads, samples = table.subject.layers, table.subject.heads, len(self.errors.complete)
        least = float(table.means()[1].min(1).mean())
        steps = f"{samples} step{'s' * (samples != 1)}"
        videos = f"{self.videos} video{'s' * (self.videos != 1)}"
        text = (
            f"p per head by measured error: {layers} layers of {heads} heads at {steps} of {videos}; "
            f"any density from {least:.2g} on."
        )
        evidence = {
            **self.evidence,
            "samples": [[one.seed, one.chunk, one.step] for one in self.errors.complete],
            "predicted_error": predicted(table),
        }
        return OwnHeads.of(name, sparse_row(text, method, evidence))
