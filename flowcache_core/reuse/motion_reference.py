"""Token-level reuse by the published SkyReels-V2 rule: a mask for every guidance branch, from its hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..denoiser import ChunkInput, ModelView
from ..errors import require
from ..rows import Grid, Rows
from ..schedule import Schedule
from .base import ChunkProgress, Decision, PolicyState
from .distance import DistanceState
from .motion import Motion, grid_of, relative_change
from .motion_weights import hidden_motion, rescaled
from .quantity import Computed
from .token_needs import TokenNeeds, Verdict

Place = tuple[int, int]
"""Chunk and branch."""


@dataclass(frozen=True)
class ReferenceMotion(Motion):
    """MotionCache (arXiv 2605.01725) for SkyReels-V2 as published, for researchers: :class:`.motion.Motion` is the rule
    that this project stands for.

    Every branch decides for itself, by how much its hidden states behind the last block (as they are, or embedding plus
    the residual that is reused) change from frame to frame. The guided velocity then mixes fresh and stale branches,
    and with ``always_last`` off later chunks read stale K/V: that is theirs. Not repeated: the stale store of last
    frames from segment to segment. The reused quantity is the residual.
    """

    name: ClassVar[str] = "motion reference"
    reads_residual: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.share == 0, "fixed_share", self.share, f"0 with {self.name}, whose branches decide apart")

    def begin(self, schedule: Schedule, denoiser: ModelView) -> ReferenceMotionState:
        return ReferenceMotionState(schedule, self, self.distance.begin(schedule, denoiser), denoiser)


@dataclass
class ReferenceMotionState(PolicyState):
    """tokens, weights: the needs and weights of every branch of the chunks in work. last: its last frame's hidden
    states ``[B, S, dim]``, of the chunk before too. branches: known behind the first step.
    """

    policy: ReferenceMotion
    distance: DistanceState
    model: ModelView
    branches: int = field(default=1, init=False)
    tokens: dict[Place, TokenNeeds] = field(default_factory=dict, init=False)
    weights: dict[Place, Tensor] = field(default_factory=dict, init=False)
    last: dict[Place, Tensor] = field(default_factory=dict, init=False)

    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        """One copy to the CPU for all branches of all chunks of the tick."""
        changes = self.distance.sums(items)
        verdicts = [self.verdicts(item, change) for item, change in zip(items, changes, strict=True)]
        waiting = [(one, one.asked) for each in verdicts for one in each if one.asked is not None]
        if waiting:
            packed = self.reader.fetch(torch.cat([asked for _, asked in waiting]))
            for (one, _), answer in zip(waiting, packed.split([asked.numel() for _, asked in waiting]), strict=True):
                one.settle(answer)
        return [
            self.settle(item.chunk.index, together([one.decision for one in each], grid_of(item.latents)))
            for item, each in zip(items, verdicts, strict=True)
        ]

    def verdicts(self, item: ChunkInput, change: object) -> list[Verdict]:
        """Of every branch; one for all where nobody has a choice."""
        policy, chunk = self.policy, item.chunk.index
        forced = policy.forced(item.step, self.schedule.steps, ChunkProgress())
        if forced or change is None or policy.threshold == 0:
            self.clear(chunk)
            reason = forced or ("first step" if change is None else "threshold reached")
            return [Verdict.known(Decision("compute", reason))]
        distance = relative_change(change, policy.distance)  # type: ignore[arg-type]
        found = []
        for branch in range(self.branches):
            needs = self.needs(item, branch)
            uniform = needs.uniform(item.step) or policy.floor == 1
            needs.grow(distance, None if uniform else self.weights.get((chunk, branch)))
            found.append(needs.verdict(distance))
        return found

    def behind(self, item: ChunkInput, last: Computed) -> None:
        self.branches = last.velocity.shape[0]
        chunk, step = item.chunk.index, item.step + 1
        phase = [branch for branch in range(self.branches) if not self.needs(item, branch).uniform(step)]
        if step < self.policy.warmup_steps or last.residual is None or not phase:
            return
        frames = grid_of(item.latents)[0]
        embedded = self.model.patch_embedding(item).flatten(1, -2)
        residual = last.residual.to(embedded.device).unflatten(0, (self.branches, -1))
        for branch in phase:
            hidden = (embedded + residual[branch]).float().unflatten(1, (frames, -1))  # [B, f, S, dim]
            before = self.last.get((chunk - 1, branch))
            self.last[chunk, branch] = hidden[:, -1]
            if before is None and chunk == 0 and frames == 1:
                continue  # the video's first frame alone: no motion is known, its tokens decide alike
            motion = torch.stack([hidden_motion(*pair) for pair in paired(hidden, before)]).mean(0)
            if before is None and chunk > 0:
                # Nothing is known of the frame before: the floor, everywhere.
                motion = torch.cat((motion.new_ones(1, hidden.shape[2]), motion[1:]))
            self.weights[chunk, branch] = rescaled(motion, self.policy.floor)

    def needs(self, item: ChunkInput, branch: int) -> TokenNeeds:
        place = (item.chunk.index, branch)
        if place not in self.tokens:
            self.tokens[place] = TokenNeeds(self.policy, grid_of(item.latents), item.latents.device)
        return self.tokens[place]

    def clear(self, chunk: int) -> None:
        for (of, _), needs in self.tokens.items():
            if of == chunk:
                needs.clear()

    def overridden(self, chunk: int) -> None:
        super().overridden(chunk)
        self.clear(chunk)

    def finish(self, chunk: int) -> None:
        super().finish(chunk)
        self.distance.finish(chunk)
        for kept, until in ((self.tokens, chunk), (self.weights, chunk), (self.last, chunk - 1)):
            for place in [place for place in kept if place[0] <= until]:
                del kept[place]


def paired(hidden: Tensor, before: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """Every video's hidden states with its last frame of the chunk before."""
    return [(one, None if before is None else before[number]) for number, one in enumerate(hidden)]


def together(decisions: Sequence[Decision], grid: Grid) -> Decision:
    """What the branches decided as one step: whole or reused where all agree, else in part."""
    first = next((one for one in decisions if not one.reuses), decisions[0])
    if len(decisions) == 1 or all(one.action == first.action != "part" for one in decisions):
        return first
    every = Rows(torch.arange(grid[0] * grid[1] * grid[2]), grid)
    each = [every if one.action == "compute" else one.rows for one in decisions]
    return replace(first, action="part", rows=Rows.by_branch(each, grid))
