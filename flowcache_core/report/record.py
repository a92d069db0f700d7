"""One run as plain numbers: what the engine's events add up to. Keeps no tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from .events import (
    AttentionDensity,
    CacheCompressed,
    CachePass,
    ChunkFinished,
    Event,
    HeadDensities,
    NotFinite,
    PlacesComputed,
    Remarked,
    RunFinished,
    RunStarted,
    StepTaken,
    WindowPass,
    beside_reuse,
)

if TYPE_CHECKING:
    from ..engine import EngineSettings

Kind = Literal["given", "warm-up", "computed", "forced", "part", "reused", "not finite", "pending"]

_KINDS: dict[str, Kind] = {"first step": "warm-up", "warm-up": "warm-up", "last step": "forced", "cap": "forced"}


def kind(step: StepTaken) -> Kind:
    """How a step is shown: reused, computed in part, or computed because of warm-up, by force (last step, cap), or by
    the policy."""
    if step.action == "part":
        return "part"
    return "reused" if step.action == "reuse" else _KINDS.get(step.reason, "computed")


@dataclass(frozen=True)
class WindowSpan:
    """Where one window of a long video lies in the record: ``chunks`` of them from ``first_chunk`` on, the first
    ``prefix_chunks`` given clean (in later windows: the end of the window before), each in ``steps`` steps.
    """

    first_chunk: int
    chunks: int
    prefix_chunks: int
    total_steps: int
    steps: int


@dataclass(frozen=True)
class RunRecord:
    """One run, finished or not: of one window, or of all windows of a long video, one after the other.

    Chunks and ticks count on from window to window; a chunk that overlaps two windows counts in both, as it costs in
    both. started: of the whole run: chunks and steps added up; a chunk's steps, bytes and tokens those of the
    largest window.
    threshold: of the reuse policy, None when it has none. kv_bytes: allocated for K/V, the peak by construction.
    kv_capacity, budget_tokens: tokens per layer. flops: None when no cost function was given. seconds: None until all
    windows have finished.
    """

    tag: str
    threshold: float | None
    started: RunStarted
    windows: tuple[WindowSpan, ...]
    steps_taken: tuple[StepTaken, ...]
    compressions: tuple[CacheCompressed, ...]
    cache_passes: tuple[CachePass, ...]
    window_passes: tuple[WindowPass, ...]
    not_finite: tuple[NotFinite, ...]
    densities: tuple[AttentionDensity, ...]
    head_densities: tuple[HeadDensities, ...]
    places: tuple[PlacesComputed, ...]
    remarks: tuple[str, ...]
    chunks_finished: int
    seconds: float | None
    engine_seconds: float | None
    flops: float | None

    @property
    def total_steps(self) -> int:
        return self.started.total_steps

    @property
    def computed_steps(self) -> int:
        """Steps that were computed whole."""
        return sum(step.action == "compute" for step in self.steps_taken)

    @property
    def part_steps(self) -> int:
        """Steps of which some tokens were computed."""
        return sum(step.action == "part" for step in self.steps_taken)

    @property
    def reused_steps(self) -> int:
        return len(self.steps_taken) - self.computed_steps - self.part_steps

    @property
    def computed_share(self) -> float:
        """Computed tokens over those of all steps of the plan, each step weighing 1 (1.0 for a plan without steps)."""
        shares = sum(step.computed_tokens / step.tokens for step in self.steps_taken if step.action == "part")
        return (self.computed_steps + shares) / self.total_steps if self.total_steps else 1.0

    @property
    def kv_bytes(self) -> int:
        return self.started.kv_bytes

    @property
    def pflops(self) -> float | None:
        return None if self.flops is None else self.flops / 1e15

    @property
    def kv_tokens(self) -> tuple[tuple[int, int], ...]:
        """(tick, most K/V tokens held per layer during it), in order of ticks."""
        most: dict[int, int] = {}
        for step in self.steps_taken:
            most[step.tick] = max(most.get(step.tick, 0), step.kv_tokens)
        return tuple(sorted(most.items()))

    @property
    def kinds(self) -> list[list[Kind]]:
        """The chunk x step map, a row as long as its window's steps; "given" for prefix chunks, "pending" for steps not
        taken yet, "not finite" for those that left NaN or infinite values, however they were made."""
        rows: list[list[Kind]] = [
            ["given" if chunk < window.prefix_chunks else "pending"] * window.steps
            for window in self.windows
            for chunk in range(window.chunks)
        ]
        for step in self.steps_taken:
            rows[step.chunk][step.step] = kind(step)
        for broken in self.not_finite:
            rows[broken.chunk][broken.step] = "not finite"
        return rows

    @property
    def fault(self) -> str | None:
        """One sentence that says from where on values were not finite; None where all of them were."""
        if not self.not_finite:
            return None
        first = self.not_finite[0]
        where = "in the velocity" if first.part == "velocity" else "in the latents after the step"
        if first.branches:
            where += f" of branch {_listed(first.branches)}"
        if first.videos:
            where += f", in video {_listed(first.videos)} of the batch"
        return (
            f"values were not finite from {first.place} on ({where}): NaN or infinite, in "
            f"{len(self.not_finite)} of {len(self.steps_taken)} steps"
        )

    @property
    def beside_reuse(self) -> tuple[str, ...]:
        """What else made this video another one than the uncached, each once (:func:`.events.beside_reuse`)."""
        signs: tuple[Event, ...] = (*self.compressions[:1], self.started, *self.densities[:1])
        return tuple(name for event in signs if (name := beside_reuse(event)))

    @property
    def step_densities(self) -> dict[tuple[int, int], float]:
        """(chunk, step) -> computed share of its self-attention, of the steps whose attention was not all computed."""
        return {(event.chunk, event.step): event.density for event in self.densities if event.step is not None}

    @property
    def attention_density(self) -> float | None:
        """Computed share of the self-attention of all computed steps; None where nothing was left out."""
        if not self.densities:
            return None
        shares = self.step_densities
        pairs = [(step, step.tokens * step.context_tokens) for step in self.steps_taken if step.context_tokens]
        return sum(n * shares.get((step.chunk, step.step), 1.0) for step, n in pairs) / sum(n for _, n in pairs)

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence for every setting that could not help: known at the start, or seen only in the run."""
        seen = (self._threshold_note(), self._window_note())
        return (*self.started.notes, *self.remarks, *(note for note in seen if note))

    def _threshold_note(self) -> str | None:
        if not self.threshold or self.seconds is None:
            return None
        open_steps = [step for step in self.steps_taken if step.reason in ("within threshold", "threshold reached")]
        reused = sum(step.action == "reuse" for step in open_steps)
        if not open_steps:
            return None
        if reused == 0 and not self.window_passes:
            smallest = min(_numbers(step.distance for step in open_steps), default=None)
            measured = "" if smallest is None else f"; the smallest distance measured was {smallest:.3g}"
            return f"threshold {self.threshold:g} is too low here: 0 of {self.total_steps} steps reused{measured}"
        if reused == len(open_steps) and len(open_steps) > 1:
            largest = max(_numbers(step.accumulated for step in open_steps), default=None)
            measured = "" if largest is None else f" (at most {largest:.3g} accumulated)"
            same = "every step free to be reused was, so a larger one changes nothing"
            return f"threshold {self.threshold:g} was never reached{measured}: {same}"
        return None

    def _window_note(self) -> str | None:
        undone = sum(step.reason == "window pass" for step in self.steps_taken)
        if not undone or self.seconds is None or self.reused_steps:
            return None
        return (
            f"{self.started.attention} attention computes all chunks of a tick together: none of the {undone} steps "
            "within the threshold was reused"
        )


@dataclass
class Recorder:
    """Observer of one run: call it with every event, then (or at any moment in between) take ``record()``.

    The windows of a long video go into one recorder, one after the other. flops: cost of one event in floating-point
    operations, summed over the run.
    """

    tag: str = ""
    threshold: float | None = None
    flops: Callable[[Event], float] | None = None
    _events: list[Event] = field(default_factory=list, init=False)
    _chunks_finished: int = field(default=0, init=False)
    _flops: float = field(default=0.0, init=False)

    @classmethod
    def of(cls, settings: EngineSettings, flops: Callable[[Event], float] | None = None) -> Recorder:
        """A recorder named after the settings."""
        return cls(settings_tag(settings), getattr(settings.policy, "threshold", None), flops)

    def __call__(self, event: Event) -> None:
        if self.flops is not None:
            self._flops += self.flops(event)
        if isinstance(event, ChunkFinished):
            self._chunks_finished += 1  # its latents must not stay alive here
        else:
            self._events.append(event)

    def record(self) -> RunRecord:
        """What has happened so far. Raises ValueError before the run has started."""
        started = [e for e in self._events if isinstance(e, RunStarted)]
        if not started:
            raise ValueError("a record is of one run, this recorder saw none start")
        spans = window_spans(started)
        events = list(in_one_row(self._events, spans))
        finished = [e for e in events if isinstance(e, RunFinished)]
        complete = len(finished) == len(started)
        return RunRecord(
            tag=self.tag,
            threshold=self.threshold,
            started=whole(started),
            windows=spans,
            steps_taken=tuple(e for e in events if isinstance(e, StepTaken)),
            compressions=tuple(e for e in events if isinstance(e, CacheCompressed)),
            cache_passes=tuple(e for e in events if isinstance(e, CachePass)),
            window_passes=tuple(e for e in events if isinstance(e, WindowPass)),
            not_finite=tuple(e for e in events if isinstance(e, NotFinite)),
            densities=tuple(e for e in events if isinstance(e, AttentionDensity)),
            head_densities=tuple(e for e in events if isinstance(e, HeadDensities)),
            places=tuple(e for e in events if isinstance(e, PlacesComputed)),
            remarks=tuple(dict.fromkeys(e.text for e in events if isinstance(e, Remarked))),
            chunks_finished=self._chunks_finished,
            seconds=sum(e.seconds for e in finished) if complete else None,
            engine_seconds=sum(e.engine_seconds for e in finished) if complete else None,
            flops=None if self.flops is None else self._flops,
        )


_OF_CHUNKS = (
    StepTaken,
    NotFinite,
    CacheCompressed,
    CachePass,
    AttentionDensity,
    HeadDensities,
    PlacesComputed,
)


def _numbers(values: Iterable[float | None]) -> Iterator[float]:
    return (value for value in values if value is not None and math.isfinite(value))


def _listed(numbers: Sequence[int]) -> str:
    """Such as "0", "0 and 1", "0, 1 and 2"."""
    *head, last = map(str, numbers)
    return f"{', '.join(head)} and {last}" if head else last


def window_spans(started: Iterable[RunStarted]) -> tuple[WindowSpan, ...]:
    """Every window's chunks behind those of the windows before it."""
    spans: list[WindowSpan] = []
    for e in started:
        first = spans[-1].first_chunk + spans[-1].chunks if spans else 0
        spans.append(WindowSpan(first, e.chunks, e.prefix_chunks, e.total_steps, e.steps))
    return tuple(spans)


def whole(started: Sequence[RunStarted]) -> RunStarted:
    """One start for all windows: counts added up, sizes of the largest, every note once."""
    budgets = [e.budget_tokens for e in started if e.budget_tokens is not None]
    return replace(
        started[0],
        chunks=sum(e.chunks for e in started),
        steps=max(e.steps for e in started),
        total_steps=sum(e.total_steps for e in started),
        kv_bytes=max(e.kv_bytes for e in started),
        kv_tokens=max(e.kv_tokens for e in started),
        budget_tokens=max(budgets, default=None),
        notes=tuple(dict.fromkeys(note for e in started for note in e.notes)),
    )


def in_one_row(events: Iterable[Event], spans: Sequence[WindowSpan]) -> Iterator[Event]:
    """The events with chunks and ticks counted on from window to window."""
    window, first_tick, next_tick = -1, 0, 0
    for event in events:
        if isinstance(event, RunStarted):
            window, first_tick = window + 1, next_tick
        if isinstance(event, StepTaken | NotFinite | CacheCompressed | WindowPass | AttentionDensity):
            event = replace(event, tick=first_tick + event.tick)
            next_tick = max(next_tick, event.tick + 1)
        if isinstance(event, _OF_CHUNKS):
            event = replace(event, chunk=spans[window].first_chunk + event.chunk)
        yield event


def settings_tag(settings: EngineSettings) -> str:
    """Short name of a configuration for logs and file names, such as "chunkwise-t0.1-w5-velocity-kv2"."""
    policy, budgets = settings.policy, settings.kv.budgets
    parts = [policy.name]
    if policy.name != "never":
        threshold = getattr(policy, "threshold", None)
        parts += [] if threshold is None else [f"t{threshold:g}"]
        parts += [f"w{policy.warmup_steps}", settings.quantity.name]
    if budgets:
        parts.append(f"kv{max(budgets):g}" + ("max" if len(set(budgets)) > 1 else ""))
    return "-".join(parts)
