"""A fixed table of computed steps, and another of steps at which the tokens that need it most are computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from ..denoiser import ChunkInput, ModelView
from ..errors import require, require_finite
from ..options import option, replaced
from ..rows import Rows
from ..schedule import Schedule
from .base import Decision, Parts
from .forecast import combine, lagrange
from .motion import PATCH, grid_of, moves
from .motion_weights import motion_weights, token_means
from .schedule import StaticSchedule, StaticScheduleState
from .token_needs import counted, largest

CHOICES = ("motion", "forecast error")


@dataclass(frozen=True)
class PartialSchedule(StaticSchedule):
    """:class:`StaticSchedule` with steps of which only some tokens are computed.

    partial: own steps, none of them in the table; one that the first chunk's table names is whole there. share: of the
    chunk's tokens. chosen_by: the tokens that move most from frame to frame (MotionCache's rule,
    :func:`.motion_weights.motion_weights`), or those whose velocity was furthest from its forecast when the chunk was
    computed last. Nothing is read of the device.
    """

    name: ClassVar[str] = "partial schedule"

    computed: tuple[int, ...] = replaced(StaticSchedule, "computed", (0,))
    partial: tuple[int, ...] = option(
        (),
        "Only for partial schedule: own steps at which some of a chunk's places are computed, none of them in "
        "computed_steps.",
        label="partial_steps",
        optional=True,
        place=33,
        advanced=True,
    )
    share: float = option(
        0.3,
        "Only for partial schedule: the share of the places that is computed at partial_steps.",
        label="partial_share",
        minimum=0.01,
        maximum=1.0,
        step=0.05,
        optional=True,
        place=34,
        advanced=True,
    )
    chosen_by: str = option(
        "forecast error",
        "Only for partial schedule: which places are computed: those that move most between frames, or those whose "
        "forecast was worst the last time.",
        choices=CHOICES,
        optional=True,
        place=35,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = all(isinstance(step, int) and step > 0 for step in self.partial)
        free = not set(self.partial) & set(self.computed)
        require(whole and free, "partial_steps", self.partial, "own steps >= 1 that are not in computed_steps")
        require_finite("partial_share", self.share, minimum=0.0, maximum=1.0)
        require(self.share > 0, "partial_share", self.share, "a share above 0")
        require(self.chosen_by in CHOICES, "chosen_by", self.chosen_by, " or ".join(CHOICES))

    @property
    def content_free(self) -> bool:
        return not self.partial

    @property
    def parts(self) -> Parts:  # type: ignore[override]
        """Whether a gap is ever interrupted more than once, in the table of the first chunk or of the others."""
        if not self.partial:
            return "never"
        for table in (self.computed, self.first or self.computed):
            ends = (*sorted(table), max((*table, *self.partial)) + 1)
            inner = set(self.partial) - set(table)
            if any(sum(a < one < b for one in inner) > 1 for a, b in zip(ends, ends[1:], strict=False)):
                return "often"
        return "once"

    def check(self, steps: int) -> None:
        super().check(steps)
        last = max(self.partial, default=0)
        require(last < steps, "partial_steps", last, f"own steps 1..{steps - 1} of this run")

    def begin(self, schedule: Schedule, denoiser: ModelView) -> PartialScheduleState:
        self.check(schedule.steps)
        return PartialScheduleState(schedule, self, frozenset(self.computed), denoiser)


@dataclass
class PartialScheduleState(StaticScheduleState):
    """nodes: of every chunk in work the last two whole steps (sigma, guided velocity); errors: how far each token's
    velocity was from the line through them ``[frames, tokens per frame]``."""

    policy: PartialSchedule
    model: ModelView
    nodes: dict[int, list[tuple[float, Tensor]]] = field(default_factory=dict, init=False)
    errors: dict[int, Tensor] = field(default_factory=dict, init=False)

    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        decisions = super().decide(items)
        return [self.in_part(item, decision) for item, decision in zip(items, decisions, strict=True)]

    def in_part(self, item: ChunkInput, decision: Decision) -> Decision:
        if not decision.reuses or item.step not in self.policy.partial:
            return decision
        self.progress(item.chunk.index).consecutive = 0
        if self.by_motion(item) and not moves(item):
            return Decision("compute", "share")
        scores = self.scores(item).flatten()
        rows = Rows(largest(scores, counted(self.policy.share, len(scores))), grid_of(item.latents))
        if rows.count == rows.tokens:
            return Decision("compute", "share")
        return Decision("part", "share", rows=rows)

    def by_motion(self, item: ChunkInput) -> bool:
        return self.policy.chosen_by == "motion" or item.chunk.index not in self.errors

    def scores(self, item: ChunkInput) -> Tensor:
        """How much each token needs to be computed ``[frames, tokens per frame]``."""
        if self.by_motion(item):
            return motion_weights(item.latents, item.before, 0.0, PATCH)
        return self.errors[item.chunk.index]

    def observe(self, item: ChunkInput, velocity: Tensor) -> None:
        super().observe(item, velocity)
        if self.policy.chosen_by != "forecast error":
            return
        nodes, guided = self.nodes.setdefault(item.chunk.index, []), self.model.guide(velocity, item).float()
        if nodes:
            expected = combine(lagrange([sigma for sigma, _ in nodes], item.sigma), [one for _, one in nodes])
            self.errors[item.chunk.index] = token_means((guided - expected).abs(), PATCH)
        self.nodes[item.chunk.index] = [*nodes[-1:], (item.sigma, guided)]

    def finish(self, chunk: int) -> None:
        super().finish(chunk)
        self.nodes.pop(chunk, None)
        self.errors.pop(chunk, None)
