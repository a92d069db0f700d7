"""Lists of computed steps that others searched for Wan 2.1, carried to the steps of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

from ..denoiser import ModelView
from ..errors import require
from ..options import option, replaced
from ..reading.json_text import read_object
from ..schedule import Schedule
from .base import PolicyState, ReusePolicy
from .schedule import StaticSchedule, stretch

FILE = Path(__file__).with_name("published_lists.json")
MADE_FOR = 50
NAMES = tuple(
    f"{method} {count}"
    for count in (21, 13, 9)
    for method in ("shared", "budcache", "meancache", "seacache", "teacache", "sencache", "dicache")
    if (method, count) != ("teacache", 13) and (method, count) != ("seacache", 9)  # not chosen at that count
)


@cache
def published_lists() -> Mapping[str, tuple[int, ...]]:
    """Name -> computed steps of 50, such as ``budcache 21``."""
    rows = read_object(FILE, "published lists", "the pack's own file")["lists"]
    return {name: tuple(step for step, bit in enumerate(rows[name]) if bit == "0") for name in NAMES}


@dataclass(frozen=True)
class Published(ReusePolicy):
    """One of the lists of the Golden Path study (arXiv 2609.39343; Wan 2.1 T2V 1.3B, 50 steps), in every chunk.

    Each is one list for all prompts: searched (budcache, meancache), spread almost evenly (shared, what its forecasting
    methods ran on), or the one that an adaptive method chose most often over 48 prompts. The number is how many of 50
    steps are computed; other step counts take the list stretched. They were made for videos in one piece.
    """

    name: ClassVar[str] = "published"

    warmup_steps: int = replaced(ReusePolicy, "warmup_steps", 1)
    steps_of: str = option(
        "budcache 21",
        "Only for the policy published: which searched list of Wan 2.1 1.3B, and how many of 50 steps it computes.",
        label="published_list",
        choices=NAMES,
        optional=True,
        place=25,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.steps_of in NAMES, "published_list", self.steps_of, ", ".join(NAMES))

    @property
    def content_free(self) -> bool:
        return True

    def lists(self, steps: int) -> StaticSchedule:
        """The list for a run of ``steps`` steps."""
        table = published_lists()[self.steps_of]
        return StaticSchedule(
            warmup_steps=self.warmup_steps,
            always_last=self.always_last,
            max_reuses=self.max_reuses,
            last_tick=self.last_tick,
            computed=table if steps == MADE_FOR else stretch(table, MADE_FOR, steps),
        )

    def note(self, steps: int) -> str | None:
        return super().note(steps) or self.lists(steps).note(steps)

    def begin(self, schedule: Schedule, denoiser: ModelView) -> PolicyState:
        self.check(schedule.steps)
        return self.lists(schedule.steps).begin(schedule, denoiser)
