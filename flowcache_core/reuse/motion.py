"""Reuse token by token: after a uniform phase every token decides by its motion whether it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..denoiser import ChunkInput, ModelView
from ..errors import require, require_count, require_finite
from ..options import option
from ..rows import Grid
from ..schedule import Schedule
from .base import ChunkProgress, Decision, Parts, PolicyState
from .by_distance import ByDistance
from .distance import TINY, Change, Distance, DistanceState
from .motion_weights import motion_weights
from .token_needs import TokenNeeds, Verdict

PATCH = (2, 2)  # of a token, in Wan and MAGI-1


@dataclass(frozen=True)
class Motion(ByDistance):
    """MotionCache (arXiv 2605.01725) with one mask a chunk, from its latents, for all guidance branches.

    A token's need grows at every step by the chunk's distance times the token's weight and is compared with the
    threshold. In the uniform phase, ``uniform_updates`` computed steps behind the warm-up and at least until own step
    ``uniform_steps``, all weights are 1: chunkwise reuse. Afterwards they come from the motion between frames
    (:func:`.motion_weights.motion_weights`, floor, relative). vote: a place of the frame is computed, in all frames of
    the chunk, where more than this share of them need it; None lets every token decide alone. minimum: fewer tokens
    than this share are not computed, their need goes on growing. max_reuses: so many steps in a row a single token may
    be reused. share: compute this share of the tokens at every step behind the uniform phase, those that need it most,
    instead of asking the threshold: no sync, and one shape; with a cap no less than holds it. 0: as many as need it.

    Departures from the published code, which forbids K/V compression: branches share a mask (theirs choose apart, so
    the guided velocity mixes fresh and stale), the last step is whole (theirs leaves stale K/V behind), and the last
    frame of the chunk before is that chunk's own, after given frames too.
    """

    name: ClassVar[str] = "motion"
    parts: ClassVar[Parts] = "often"

    floor: float = option(
        0.6,
        "Only for motion: weight of the tokens that move least; those that move most have 1. With 1 all tokens of a "
        "chunk decide alike.",
        label="motion_floor",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
        optional=True,
        place=26,
        advanced=True,
    )
    uniform_updates: int = option(
        6,
        "Only for motion: so many computed steps of a chunk behind its warm-up are computed whole before its tokens "
        "decide on their own.",
        minimum=0,
        maximum=1000,
        optional=True,
        place=27,
        advanced=True,
    )
    uniform_steps: int = option(
        0,
        "Only for motion: a chunk's first own steps in which all its tokens decide alike, whatever was computed.",
        minimum=0,
        maximum=1000,
        optional=True,
        place=28,
        advanced=True,
    )
    vote: float | None = option(
        0.5,
        "Only for motion: a place of the picture is computed in all frames of a chunk where more than this share of "
        "them need it. 0: every token decides alone.",
        label="motion_vote",
        minimum=0.0,
        maximum=0.95,
        step=0.05,
        none=0,
        optional=True,
        place=29,
        advanced=True,
    )
    minimum: float = option(
        0.4,
        "Only for motion: fewer tokens than this share of a chunk are not worth a step; they wait until more need it.",
        label="minimum_share",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
        optional=True,
        place=30,
        advanced=True,
    )
    share: float = option(
        0.0,
        "Only for motion: compute this share of a chunk's tokens at every step, those that need it most, instead of "
        "asking the threshold. 0: as many as need it.",
        label="fixed_share",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
        optional=True,
        place=31,
        advanced=True,
    )
    relative: bool = option(
        True,
        "Only for motion: measure the motion between frames relative to their size, as for SkyReels-V2. Off: as it is, "
        "and the video's first frame weighs 1, as for MAGI-1.",
        label="relative_motion",
        optional=True,
        place=32,
        advanced=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("uniform_updates", self.uniform_updates, minimum=0)
        require_count("uniform_steps", self.uniform_steps, minimum=0)
        for label, value in (
            ("motion_floor", self.floor),
            ("minimum_share", self.minimum),
            ("fixed_share", self.share),
        ):
            require_finite(label, value, minimum=0.0, maximum=1.0)
        if self.vote is not None:
            require_finite("motion_vote", self.vote, minimum=0.0, maximum=1.0)
            require(0 < self.vote < 1, "motion_vote", self.vote, "a share between 0 and 1, 0 for no vote")

    @property
    def content_free(self) -> bool:
        return False  # whatever the distance: the weights are the video's

    @property
    def computed_share(self) -> float:
        """What ``share`` comes to: under a cap no less than holds it."""
        cap = self.max_reuses
        return max(self.share, 1 / (cap + 1)) if self.share and cap is not None else self.share

    def note(self, steps: int) -> str | None:
        known = super().note(steps)
        if known is not None:
            return known
        if self.share == 1:
            return "fixed_share 1: every step is computed"
        free = steps - max(self.warmup_steps + self.uniform_updates, self.uniform_steps) - int(self.always_last)
        if self.share and free <= 0:
            return f"{steps} steps end before the uniform phase does: every step is computed"
        if free <= 0 or self.floor == 1:
            why = "motion_floor 1" if self.floor == 1 else f"{steps} steps"
            return f"{why}: no token decides on its own, this is chunkwise reuse"
        return None

    def begin(self, schedule: Schedule, denoiser: ModelView) -> PolicyState:
        return MotionState(schedule, self, self.distance.begin(schedule, denoiser))


@dataclass
class MotionState(PolicyState):
    """tokens: the needs of every chunk in work."""

    policy: Motion
    distance: DistanceState
    tokens: dict[int, TokenNeeds] = field(default_factory=dict, init=False)

    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        """One copy to the CPU for all chunks of the tick; none where no value has to be looked at."""
        verdicts = [self.grown(item, change) for item, change in zip(items, self.distance.sums(items), strict=True)]
        waiting = [verdict for verdict in verdicts if verdict.asked is not None]
        if waiting:
            sizes = [verdict.asked.numel() for verdict in waiting if verdict.asked is not None]
            asked = torch.cat([verdict.asked for verdict in waiting if verdict.asked is not None])
            packed = self.reader.fetch(asked)
            for verdict, answer in zip(waiting, packed.split(sizes), strict=True):
                verdict.settle(answer)
        return [self.settle(item.chunk.index, v.decision) for item, v in zip(items, verdicts, strict=True)]

    def grown(self, item: ChunkInput, change: Tensor | Change | None) -> Verdict:
        """What is known of a chunk's step before the values have been looked at."""
        policy, needs = self.policy, self.needs(item)
        forced = policy.forced(item.step, self.schedule.steps, ChunkProgress())
        if forced or change is None or policy.threshold == 0:
            needs.clear()
            return Verdict.known(
                Decision("compute", forced or ("first step" if change is None else "threshold reached"))
            )
        uniform = needs.uniform(item.step)
        if policy.share and (uniform or policy.share == 1 or not moves(item)):
            needs.computed_whole()
            return Verdict.known(Decision("compute", "share"))
        weights = None if uniform or policy.floor == 1 else self.weights(item)
        distance = relative_change(change, policy.distance)
        needs.grow(distance, weights)
        return needs.most() if policy.share else needs.verdict(distance)

    def weights(self, item: ChunkInput) -> Tensor:
        policy = self.policy
        ways = {"relative": policy.relative, "copies_second": policy.relative}
        return motion_weights(item.latents, item.before, policy.floor, PATCH, **ways)

    def needs(self, item: ChunkInput) -> TokenNeeds:
        found = self.tokens.get(item.chunk.index)
        if found is None:
            found = TokenNeeds(self.policy, grid_of(item.latents), item.latents.device)
            self.tokens[item.chunk.index] = found
        return found

    def overridden(self, chunk: int) -> None:
        super().overridden(chunk)
        if chunk in self.tokens:
            self.tokens[chunk].clear()

    def finish(self, chunk: int) -> None:
        super().finish(chunk)
        self.distance.finish(chunk)
        self.tokens.pop(chunk, None)


def moves(item: ChunkInput) -> bool:
    """Whether anything is known of a chunk's motion: not of one frame that nothing comes before."""
    return item.before is not None or item.latents.shape[2] > 1


def grid_of(latents: Tensor) -> Grid:
    """The tokens of a chunk's latents ``[B, C, f, H, W]``."""
    down, across = PATCH
    return latents.shape[2], -(-latents.shape[3] // down), -(-latents.shape[4] // across)


def relative_change(change: Tensor | Change, distance: Distance) -> Tensor | float:
    """The distance as one number, where it was measured."""
    return distance.value([change]) if isinstance(change, Change) else change[0] / (change[1] + TINY)
