"""How long a run still takes: what is to come, weighed by what such steps took so far."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

KEPT = 32  # durations of a kind: the newest, since attention gets dearer with the history


@dataclass
class Durations:
    """Seconds of one kind of work; the median, so that a compiled or paused first one does not count."""

    newest: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    known: float | None = None  # the median, until another is added

    def add(self, seconds: float) -> None:
        self.newest.append(seconds)
        self.known = None

    @property
    def typical(self) -> float | None:
        if self.known is None and self.newest:
            self.known = median(self.newest)
        return self.known


@dataclass
class Remaining:
    """What is to come of a run, counted down as steps are taken.

    expected: for every step in the order of the run (own step, and whether it will be computed, None: not known).
    Where it is not known, a step counts as computed as often as other chunks computed it; the chunk that begins a
    video has no history and computes more than the others, so it stands for them only until there are others.
    """

    expected: Iterable[tuple[int, bool | None]]
    chunks: int
    computed: Durations = field(default_factory=Durations, init=False)
    reused: Durations = field(default_factory=Durations, init=False)
    finished: Durations = field(default_factory=Durations, init=False)

    def __post_init__(self) -> None:
        self.order = deque(self.expected)
        self.known = Counter(computes for _, computes in self.order)
        self.open = Counter(step for step, computes in self.order if computes is None)
        self.seen: dict[bool, tuple[Counter[int], dict[int, float]]] = {
            False: (Counter(), {}),
            True: (Counter(), {}),
        }  # by "begins the video": how often, and how much of it was computed
        self.likely: dict[int, float] = {}  # own step -> how much of it will be computed, as other chunks tell

    def took(self, step: int, share: float, seconds: float, *, begins: bool) -> None:
        """The next step of the run, of which ``share`` was computed. begins: it is of the chunk that begins a video."""
        _, computes = self.order.popleft()
        self.known[computes] -= 1
        if computes is None:
            self.open[step] -= 1
            times, shares = self.seen[begins]
            times[step] += 1
            shares[step] = shares.get(step, 0.0) + share
            if not begins or step not in self.seen[False][1]:
                self.likely[step] = shares[step] / times[step]
        if share == 0:
            self.reused.add(seconds)
        elif share == 1:
            self.computed.add(seconds)

    def finish(self, seconds: float) -> None:
        """A chunk is done: a last pass, decoding, whatever is not a step."""
        self.chunks -= 1
        self.finished.add(seconds)

    @property
    def steps(self) -> float:
        """Computed steps to come."""
        known = self.known[True]
        if not self.known[None]:
            return known
        usual = 0.0 if self.open.keys() <= self.likely.keys() else self._usual
        return known + sum(count * self.likely.get(step, usual) for step, count in self.open.items() if count)

    @property
    def _usual(self) -> float:
        """How much of a step was computed so far, mean."""
        taken = sum(times.total() for times, _ in self.seen.values())
        return sum(sum(shares.values()) for _, shares in self.seen.values()) / taken if taken else 1.0

    @property
    def seconds(self) -> float | None:
        """None before the first computed step is done."""
        each = self.computed.typical
        if each is None:
            return None
        steps, reused = self.steps, self.reused.typical or 0.0
        return steps * each + (len(self.order) - steps) * reused + self.chunks * (self.finished.typical or 0.0)

    def saved(self, share: float) -> float:
        """Seconds that so many whole steps (the sum of what was not computed) would have taken more."""
        each, reused = self.computed.typical, self.reused.typical or 0.0
        return 0.0 if each is None else max(0.0, share * (each - reused))
