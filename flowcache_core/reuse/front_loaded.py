"""Lists made by rule, for models without a calibration: more steps in the first chunk, and there the early ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..denoiser import ModelView
from ..errors import require_finite
from ..options import option, replaced
from ..schedule import Schedule
from .base import PolicyState, ReusePolicy
from .schedule import StaticSchedule, spread


@dataclass(frozen=True)
class FrontLoaded(ReusePolicy):
    """Shares instead of lists. first_share, share: of the steps computed in the chunk that begins a video, and in later
    ones. lead: of the first chunk's computed steps, how many are its first ones in a row; all others are spread evenly.

    Searched lists of Wan 2.1 1.3B (Golden Path study, arXiv 2609.39343) have 8 to 10 of their 21 computed steps among
    the first 10 of 50: a lead of 0.4. They were made for videos in one piece, which is what a first chunk is.
    """

    name: ClassVar[str] = "front-loaded"

    warmup_steps: int = replaced(ReusePolicy, "warmup_steps", 1)
    first_share: float = option(
        0.6,
        "Only for the policy front-loaded: share of the steps that the chunk that begins the video computes.",
        label="first_chunk_share",
        minimum=0.02,
        maximum=1.0,
        step=0.01,
        optional=True,
        place=22,
        advanced=True,
    )
    share: float = option(
        0.2,
        "Only for the policy front-loaded: share of the steps that every later chunk computes.",
        label="later_share",
        minimum=0.02,
        maximum=1.0,
        step=0.01,
        optional=True,
        place=23,
        advanced=True,
    )
    lead: float = option(
        0.4,
        "Only for the policy front-loaded: how much of the first chunk's computed steps are its first ones in a row.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
        optional=True,
        place=24,
        advanced=True,
    )
    together: bool = replaced(StaticSchedule, "together", True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("first_share", "share"):
            require_finite(name, getattr(self, name), minimum=0.02, maximum=1.0)
        require_finite("lead", self.lead, minimum=0.0, maximum=1.0)

    @property
    def content_free(self) -> bool:
        return True

    def lists(self, steps: int) -> StaticSchedule:
        """The lists for a run of ``steps`` steps."""
        first = self.table(self.first_share, steps, self.lead)
        later = self.table(self.share, steps, 0.0)
        return StaticSchedule(
            warmup_steps=self.warmup_steps,
            always_last=self.always_last,
            max_reuses=self.max_reuses,
            last_tick=self.last_tick,
            computed=later,
            first=first,
            together=self.together,
        )

    def table(self, share: float, steps: int, lead: float) -> tuple[int, ...]:
        count = min(steps, max(2, self.warmup_steps + 1, round(share * steps)))
        if count == steps:
            return tuple(range(steps))
        return spread(count, steps, min(count - 1, max(self.warmup_steps, round(lead * count))))

    def note(self, steps: int) -> str | None:
        return super().note(steps) or self.lists(steps).note(steps)

    def begin(self, schedule: Schedule, denoiser: ModelView) -> PolicyState:
        self.check(schedule.steps)
        return self.lists(schedule.steps).begin(schedule, denoiser)
