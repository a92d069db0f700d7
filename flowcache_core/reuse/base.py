"""A reuse policy decides, for every active chunk of a tick: compute now, or reuse what the chunk has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from ..denoiser import ChunkInput, ModelView
from ..errors import require_count
from ..fields import require_types
from ..options import option
from ..rows import Rows
from ..schedule import Schedule
from .read import OneRead

if TYPE_CHECKING:
    from .quantity import Computed

Reason = Literal[
    "first step",
    "warm-up",
    "last step",
    "cap",
    "within threshold",
    "threshold reached",
    "no ratio yet",
    "schedule",
    "interval",
    "window pass",
    "whole only",
    "share",
    "no reuse",
]
"""Why a step was computed or reused, as the report states it (docs/report-schema.md explains each)."""


Parts = Literal["never", "once", "often"]
"""Whether a policy has some tokens of a chunk computed and others not: never, at most once between two whole steps, or
as often as it likes."""


@dataclass(frozen=True)
class Decision:
    """What one chunk does at one step, and why (``distance`` and ``accumulated`` when the policy measured them).

    rows: the tokens that are computed where the action is "part", else None.
    """

    action: Literal["compute", "part", "reuse"]
    reason: Reason
    distance: float | None = None
    accumulated: float | None = None
    rows: Rows | None = field(default=None, compare=False, repr=False)

    @property
    def reuses(self) -> bool:
        return self.action == "reuse"


@dataclass
class ChunkProgress:
    """One chunk's state within a run: what it accumulated and how long it has been reusing."""

    accumulated: float = 0.0
    consecutive: int = 0


@dataclass(frozen=True)
class ReusePolicy(ABC):
    """Settings shared by all policies.

    warmup_steps: a chunk's first steps that are always computed (m in Eq. 8); at least 1, since nothing is there to
    reuse before. always_last: compute a chunk's last step, so that the K/V it leaves behind is fresh.
    max_reuses: cap on consecutive reuses of one chunk, None for no cap. last_tick: compute all chunks in the run's very
    last tick (what the MAGI-1 implementation does instead of ``always_last``); the run sees to it, it knows its plan.

    :meth:`check` and :meth:`note` may be called at any time, :meth:`begin` once per run. What cannot work for a number
    of steps is refused by ``check``, which the settings of every run call.
    """

    name: ClassVar[str]
    reads_model: ClassVar[bool] = False
    parts: ClassVar[Parts] = "never"
    reads_residual: ClassVar[bool] = False
    """Whether :meth:`PolicyState.behind` is called; the reused quantity then is the residual."""

    warmup_steps: int = option(
        5,
        "A chunk's first steps that are always computed. With 4 steps in all, 1 or 2; with 50, about 5.",
        minimum=1,
        maximum=1000,
        start=1,
        place=2,
    )
    always_last: bool = option(
        True, "Always compute a chunk's last step, so that the K/V it leaves behind is fresh.", place=6
    )
    max_reuses: int | None = option(
        None,
        "The most steps in a row that one chunk may reuse; 0 for no limit.",
        minimum=0,
        maximum=1000,
        none=0,
        place=5,
    )
    last_tick: bool = option(
        False,
        "Compute the very last steps of the whole video, whatever else is set: what the published MAGI-1 code does "
        "instead of always_last.",
        optional=True,
        place=17,
        advanced=True,
    )

    def __post_init__(self) -> None:
        require_types(self)
        require_count("warmup_steps", self.warmup_steps, minimum=1)
        if self.max_reuses is not None:
            require_count("max_reuses", self.max_reuses, minimum=1)

    def forced(self, step: int, steps: int, progress: ChunkProgress) -> Reason | None:
        """Why a step must be computed whatever the policy measures, or None."""
        if step == 0:
            return "first step"
        if step < self.warmup_steps:
            return "warm-up"
        if self.always_last and step == steps - 1:
            return "last step"
        if self.max_reuses is not None and progress.consecutive >= self.max_reuses:
            return "cap"
        return None

    @property
    def content_free(self) -> bool:
        """Whether decisions follow from settings, schedule and model alone, whatever the latents: no device sync.

        What :attr:`reads_model` says then decides whether a table of steps can be made without weights.
        """
        return False

    def check(self, steps: int) -> None:
        """SettingError when this policy cannot run ``steps`` steps."""
        require_count("warmup_steps", self.warmup_steps, minimum=1, maximum=steps)

    def note(self, steps: int) -> str | None:
        """One sentence when this policy cannot reuse anything in a run of ``steps`` steps, else None."""
        forced_last = self.always_last and steps > self.warmup_steps
        if steps - self.warmup_steps - int(forced_last) > 0:
            return None
        last = " and the last step" if forced_last else ""
        return f"{steps} steps with {self.warmup_steps} warm-up steps{last} computed: nothing left to reuse"

    @abstractmethod
    def begin(self, schedule: Schedule, denoiser: ModelView) -> PolicyState:
        """Fresh state for one run."""


@dataclass
class PolicyState(ABC):
    """A policy's state in one run, one :class:`ChunkProgress` per chunk. reader: for values of the device."""

    schedule: Schedule
    chunks: dict[int, ChunkProgress] = field(default_factory=dict, init=False)
    reader: OneRead = field(default_factory=OneRead, init=False)

    def read_with(self, reader: OneRead) -> None:
        """Read through ``reader``, where what others want to know of the device rides along."""
        self.reader = reader

    @abstractmethod
    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        """One decision per active chunk of the tick. At most one device sync."""

    def observe(self, item: ChunkInput, velocity: Tensor) -> None:  # noqa: B027 - most policies do not look at velocities
        """Told after a computed step: ``velocity [branches, B, ...]`` at ``item``. Must not sync with the device."""

    def behind(self, item: ChunkInput, last: Computed) -> None:  # noqa: B027 - most policies do not look at the model
        """Told after every step ``item``, computed or not, where the policy reads the residual: what is kept of the
        last computed one, every token's own.
        """

    def overridden(self, chunk: int) -> None:
        """A reuse that was decided for ``chunk`` was not made, its whole step is computed: count from here again."""
        progress = self.progress(chunk)
        progress.consecutive, progress.accumulated = 0, 0.0

    def override(self, item: ChunkInput, decision: Decision, reason: Reason) -> Decision:
        """Compute the whole chunk after all, for ``reason``, where ``decision`` was to reuse all or part of it."""
        if decision.action == "compute":
            return decision
        self.overridden(item.chunk.index)
        return replace(decision, action="compute", reason=reason, rows=None)

    def finish(self, chunk: int) -> None:
        """``chunk`` has taken its last step: drop what is kept of it, so that memory does not grow with the video."""
        self.chunks.pop(chunk, None)

    def progress(self, chunk: int) -> ChunkProgress:
        return self.chunks.setdefault(chunk, ChunkProgress())

    def settle(self, chunk: int, decision: Decision) -> Decision:
        """Note a decision in the chunk's progress and return it."""
        progress = self.progress(chunk)
        progress.consecutive = progress.consecutive + 1 if decision.reuses else 0
        if not decision.reuses:
            progress.accumulated = 0.0
        return decision
