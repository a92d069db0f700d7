"""Which head bears how much sparsity: measured in a few dense runs of a model (HASTE's error-guided calibration)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ..denoiser import ChunkInput
from ..engine import EngineSettings
from ..errors import require
from ..kv.layout import largest_chunk_frames
from ..presets.sparse import UNREAD
from ..sparse.cost import least_density, sparse_density
from ..sparse.head_errors import HeadErrors, Sample, Subject
from ..sparse.settings import SparseSettings
from ..sparse.xattention import XAttention
from .head_samples import Measuring, Place, measure_sample, samples_of
from .runs import Pair, Setup, Specimen, generated


@dataclass
class HeadCalibration:
    """Measures what ``errors`` lacks. places: samples of each video, from the first again when there are more. path:
    where measurements are kept as they come.

    told: called with (measured, all) cells.
    """

    specimen: Specimen
    setup: Setup
    errors: HeadErrors
    places: Sequence[Sequence[Place]]
    path: Path | None = None
    told: Callable[[int, int], None] = lambda done, of: None
    done: int = 0

    @property
    def subject(self) -> Subject:
        return self.errors.subject

    def total(self, videos: int) -> int:
        return self.subject.cells * sum(len(self.places[i % len(self.places)]) for i in range(videos))

    def known(self, pairs: Sequence[Pair]) -> int:
        """Cells of :meth:`total` that need no measuring any more."""
        count = 0
        for number, (_, seed) in enumerate(pairs):
            places = self.places[number % len(self.places)]
            begun = [one for one in self.errors.error if one.seed == seed and (one.chunk, one.step) in places]
            count += sum(self.subject.cells - len(list(self.errors.missing(one))) for one in begun)
        return count

    def run(self, pairs: Sequence[Pair]) -> None:
        """One dense run per pair, all samples in it; a pair whose samples are complete is not run again."""
        total = self.total(len(pairs))
        for number, (prompt, seed) in enumerate(pairs):
            places = self.places[number % len(self.places)]
            known = [sample for sample in self.errors.error if sample.seed == seed]
            whole = {(one.chunk, one.step) for one in known if not list(self.errors.missing(one))}
            left = [place for place in places if place not in whole]
            self.done += self.subject.cells * (len(places) - len(left))
            if not left:
                continue

            def measure(
                dense: Tensor, item: ChunkInput, forward: Callable[[object], Tensor], context: int, seed: int = seed
            ) -> None:
                self.sample(Sample(seed, item.chunk.index, item.step, context), dense, forward, total)

            denoiser = Measuring(self.specimen.denoiser([prompt], self.setup), left, measure)
            last = max(chunk for chunk, _ in left) + 1
            # A video's later chunks are of no use to its earlier ones.
            generated(self.specimen, replace(self.setup, chunks=last), [(prompt, seed)], denoiser=denoiser)

    def sample(self, sample: Sample, dense: Tensor, forward: Callable[[object], Tensor], total: int) -> None:
        def each() -> None:
            self.done += 1

        measure_sample(self.errors, sample, dense, forward, self.path, each)
        self.told(self.done, total)


def spread_places(
    engine: EngineSettings, dense_chunks: int, count: int, video: int = 0, videos: int = 1
) -> tuple[Place, ...]:
    """``count`` samples of one video: chunks from the first sparse one to the last, steps spread over the run.

    Every sample has its own step, in each of ``videos`` others; contexts short and long take turns. SettingError (field
    "chunks") when none is sparse.
    """
    sparse = SparseSettings(dense_chunks=dense_chunks).sparse_steps(engine.plan, 1, engine.kv, engine.recache)
    accepted = f"more than the {dense_chunks} whose contexts stay dense"
    require(len(sparse) > 0, "chunks", len(engine.plan.chunks), accepted)
    return samples_of(sparse, count, video, videos)


def require_reachable(density: float, engine: EngineSettings, dense_chunks: int, subject: Subject, tokens: int) -> None:
    """SettingError (field "density") for one that no table of this ``subject`` reaches in this video, as far as that
    is known before it is measured. tokens: of the largest chunk."""
    settings = SparseSettings(XAttention(subject.block, stride=subject.stride), dense_chunks)
    each = tokens // largest_chunk_frames(engine.plan)
    forwards = tuple(settings.forwards(engine.plan, each, engine.kv, engine.recache))
    sparse_density(forwards, density)
    least = least_density(forwards, subject.block)
    accepted = f"at least {least:.3g}: in this video the chunks that stay dense, and one block in every other row"
    require(density >= least, "density", density, accepted)


def subject_of(
    specimen: Specimen, setup: Setup, block: int, stride: int, candidates: Sequence[float]
) -> tuple[Subject, int]:
    """What is calibrated, and the tokens of its largest chunk; SettingError when the blocks do not fit there."""
    settings = specimen.settings(setup)
    spec = specimen.denoiser([specimen.prompts[0]], setup).kv_spec(specimen.noise(setup.chunks, 0))
    subject = Subject(specimen.sha256 or UNREAD, spec.layers, spec.heads, block, stride, tuple(candidates))
    tokens = max(chunk.frames for chunk in settings.plan.chunks) * spec.tokens_per_frame
    require(block <= tokens, "block", block, f"at most the {tokens} tokens of a chunk")
    return subject, tokens
