"""A run while it lasts: the chunk x step map as far as it has grown, what it holds, and how long it still takes.

The counterpart of :class:`.record.RunRecord`, which is made when a run is over. Plain numbers and letters, so that it
travels as JSON; every snapshot is whole, so that whoever missed the ones before needs none of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..reuse.foretold import foretold
from .events import CachePass, ChunkFinished, Event, NotFinite, RunFinished, RunStarted, StepTaken, beside_reuse
from .record import kind
from .remaining import Remaining
from .text import CHARACTERS

if TYPE_CHECKING:
    from ..engine.settings import EngineSettings

LETTERS = {name: ord(letter) for name, letter in CHARACTERS.items()}


@dataclass
class LiveRun:
    """Observer of one run of one or more windows, whose settings are known beforehand.

    Chunks count on from window to window, as in the record. rows: a letter for every step (``text.CHARACTERS``).
    shares: of steps computed in part, how much of them.

    Between two snapshots a step is only noted, and counted with the others when one is asked for: counted one by one,
    each would find the processor's caches full of the model.
    """

    windows: Sequence[EngineSettings]
    clock: Callable[[], float] = time.monotonic
    rows: list[bytearray] = field(default_factory=list, init=False)
    shares: dict[tuple[int, int], float] = field(default_factory=dict, init=False)
    done: int = field(default=0, init=False)
    computed: float = field(default=0.0, init=False)
    reused: int = field(default=0, init=False)
    finished: int = field(default=0, init=False)
    kv: dict[str, int | None] = field(default_factory=dict, init=False)
    beside: set[str] = field(default_factory=set, init=False)
    fault: str | None = field(default=None, init=False)
    ended: int = field(default=0, init=False)
    noted: list[tuple[StepTaken, float]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.first_rows: list[int] = []
        for settings in self.windows:
            plan = settings.plan
            self.first_rows.append(len(self.rows))
            for chunk in plan.chunks:
                mark = CHARACTERS["given" if chunk.index < plan.prefix_chunks else "pending"]
                self.rows.append(bytearray(mark.encode() * plan.steps))
        self.total = sum(settings.plan.total_steps for settings in self.windows)
        active = sum(len(settings.plan.chunks) - settings.plan.prefix_chunks for settings in self.windows)
        self.chunks = active
        self.left = Remaining(self._expected(), active)
        self._places = self._in_order()
        self._now = next(self._places, None)
        self._window = -1
        self._started = self._latest = self.clock()

    def _in_order(self) -> Iterator[tuple[int, int]]:
        """(row, own step) of every step to come."""
        for first, settings in zip(self.first_rows, self.windows, strict=True):
            for tick in settings.plan.ticks:
                for item in tick.steps:
                    yield first + item.chunk, item.step

    def _expected(self) -> Iterator[tuple[int, bool | None]]:
        for settings in self.windows:
            steps = (item.step for tick in settings.plan.ticks for item in tick.steps)
            yield from zip(steps, foretold(settings), strict=True)

    def __call__(self, event: Event) -> None:
        if isinstance(event, StepTaken):
            self.noted.append((event, self.clock()))
            return
        if beside := beside_reuse(event):
            self.beside.add(beside)
        if isinstance(event, RunStarted):
            self._count_noted()
            self._start(event)
        elif isinstance(event, NotFinite):
            self._count_noted()
            self._break(event)
        elif isinstance(event, ChunkFinished):
            self._count_noted()
            self.finished += 1
            self.left.finish(self._gap(self.clock()))
        elif isinstance(event, CachePass) and event.kind != "clean":
            self._count_noted()
            self._gap(self.clock())  # what goes before a step is none of it
        elif isinstance(event, RunFinished):
            self._count_noted()
            self.ended += 1

    def _start(self, event: RunStarted) -> None:
        self._window += 1
        self._gap(self.clock())
        if self._window == 0:
            self._started = self._latest
        if event.kv_tokens:
            tokens, most = event.kv_tokens, self.kv.get("allocated") or 0
            frames = self.windows[self._window].plan.frames
            self.kv |= {"bytes": event.kv_bytes, "allocated": max(tokens, most), "budget": event.budget_tokens}
            self.kv |= {"frames": frames, "held": 0, "token_bytes": event.token_bytes}

    def _count_noted(self) -> None:
        """The steps since the last time, all of the window that runs."""
        if not self.noted:
            return
        plan, first = self.windows[self._window].plan, self.first_rows[self._window]
        for event, at in self.noted:
            row, share = first + event.chunk, event.computed_share
            self.rows[row][event.step] = LETTERS[kind(event)]
            if 0 < share < 1:
                self.shares[row, event.step] = share
            self.done += 1
            self.computed += share
            self.reused += share == 0
            begins = self._window == 0 and event.chunk == 0 == plan.prefix_chunks
            self.left.took(event.step, share, self._gap(at), begins=begins)
            self._now = next(self._places, None)
        if self.kv:
            newest = self.noted[-1][0]
            per_frame = newest.tokens // plan.chunks[newest.chunk].frames
            tokens = (self.kv["frames"] or 0) * per_frame
            self.kv |= {"held": newest.kv_tokens, "whole_bytes": tokens * (self.kv["token_bytes"] or 0)}
        self.noted.clear()

    def _break(self, event: NotFinite) -> None:
        row = self.first_rows[self._window] + event.chunk
        self.rows[row][event.step] = LETTERS["not finite"]
        if self.fault is None:
            self.fault = f"chunk {row}, step {event.step}"

    def _gap(self, now: float) -> float:
        """Seconds since the last event that was asked for."""
        gap, self._latest = now - self._latest, now
        return gap

    @property
    def now(self) -> tuple[int, int] | None:
        """(row, own step) of the next step."""
        self._count_noted()
        return self._now

    @property
    def complete(self) -> bool:
        return self.ended == len(self.windows)

    @property
    def share(self) -> float:
        """Of the steps taken, how much was computed."""
        self._count_noted()
        return self.computed / self.done if self.done else 1.0

    def snapshot(self) -> dict[str, Any]:
        """All of it, as JSON holds it. Tokens are per layer; ``whole_bytes``: of the whole history as computed."""
        self._count_noted()
        left = 0.0 if self.complete else self.left.seconds
        return {
            "steps": max(settings.plan.steps for settings in self.windows),
            "windows": self.first_rows[1:],
            "rows": [row.decode() for row in self.rows],
            "shares": [[row, step, round(share, 3)] for (row, step), share in self.shares.items()],
            "now": None if self.complete else self._now,
            "done": self.done,
            "total": self.total,
            "computed": round(self.computed, 3),
            "reused": self.reused,
            "finished": self.finished,
            "chunks": self.chunks,
            "kv": {key: value for key, value in self.kv.items() if key not in ("frames", "token_bytes")} or None,
            "beside": sorted(self.beside),
            "seconds": round(self._latest - self._started, 2),
            "left": None if left is None else round(left, 2),
            "saved": round(self.left.saved(self.done - self.computed), 2),
            "fault": self.fault,
            "complete": self.complete,
        }
