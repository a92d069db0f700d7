"""What the tokens of one chunk have accumulated since they were computed, and which of them are computed now."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..rows import Grid, Rows
from .base import Decision, Reason

if TYPE_CHECKING:
    from .motion import Motion


@dataclass
class Verdict:
    """A decision, or the values on the device that it takes (``asked``, flat fp32) and what makes one of them."""

    decision: Decision
    asked: Tensor | None = None
    answered: Callable[[Tensor], Decision] | None = None

    @classmethod
    def known(cls, decision: Decision) -> Verdict:
        return cls(decision)

    def settle(self, answer: Tensor) -> None:
        """``answer``: the values of ``asked``, on the CPU."""
        assert self.answered is not None
        self.decision = self.answered(answer)


@dataclass
class TokenNeeds:
    """One chunk's.

    accumulated: ``[frames, tokens per frame]`` fp32 on the latents' device. ages: the steps each token has been reused
    in a row, kept only under a cap. updates: steps behind the warm-up in which any were computed.
    """

    policy: Motion
    grid: Grid
    device: torch.device
    updates: int = 0
    accumulated: Tensor = field(init=False)
    ages: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        frames, rows, columns = self.grid
        self.accumulated = torch.zeros(frames, rows * columns, device=self.device)
        self.ages = None if self.policy.max_reuses is None else torch.zeros_like(self.accumulated)

    def uniform(self, step: int) -> bool:
        """Whether all tokens decide alike at own step ``step``. What was accumulated ends with ``uniform_steps``."""
        policy = self.policy
        if policy.uniform_steps and step == policy.uniform_steps:
            self.accumulated.zero_()
        return step < policy.uniform_steps or self.updates < policy.uniform_updates

    def clear(self) -> None:
        """The whole chunk is computed."""
        self.accumulated = torch.zeros_like(self.accumulated)
        self.ages = None if self.ages is None else torch.zeros_like(self.ages)

    def computed_whole(self) -> None:
        self.updates += 1
        self.clear()

    def grow(self, distance: Tensor | float, weights: Tensor | None) -> None:
        """One more step: the chunk's distance times each token's weight (None: 1)."""
        moved = distance if isinstance(distance, Tensor) else torch.full((), distance, device=self.device)
        self.accumulated = self.accumulated + (moved if weights is None else moved * weights)

    # -- by the threshold --------------------------------------------------------------------------------------------

    def needed(self) -> tuple[Tensor, Tensor]:
        """Which tokens are computed ``[frames, tokens per frame]``, and whether any of them is because of the cap."""
        policy, total = self.policy, self.accumulated
        # Need that is no number is computed: it is no reason to reuse.
        needs = ~(total <= policy.threshold if policy.inclusive else total < policy.threshold)
        due = self.capped()
        if policy.vote is not None:
            needs = (needs.sum(0) > policy.vote * self.grid[0]).expand_as(needs)
            due = due.any(0).expand_as(due)
        return needs | due, due.any()

    def capped(self) -> Tensor:
        """Tokens that may not be reused once more."""
        if self.ages is None or self.policy.max_reuses is None:
            return torch.zeros_like(self.accumulated, dtype=torch.bool)
        return self.ages >= self.policy.max_reuses

    def verdict(self, distance: Tensor | float) -> Verdict:
        """Decided when the values are on the CPU."""
        needs, due = self.needed()
        numbers = [*([distance] if isinstance(distance, Tensor) else []), self.accumulated.max(), due]
        asked = torch.cat((needs.flatten().float(), torch.stack([number.float() for number in numbers])))

        def answered(values: Tensor) -> Decision:
            mask, rest = values[: needs.numel()] > 0.5, values[needs.numel() :].tolist()
            measured = distance if isinstance(distance, float) else rest[0]
            *_, most, capped = rest
            count = int(mask.sum())
            if count == 0 or (count / mask.numel() < self.policy.minimum and not capped):
                self.reused(None)
                return Decision("reuse", "within threshold", measured, most)
            self.updates += 1
            reason: Reason = "cap" if capped else "threshold reached"
            if count == mask.numel():
                self.clear()
                return Decision("compute", reason, measured, most)
            self.reused(needs)
            return Decision("part", reason, measured, most, Rows.of(mask, self.grid))

        return Verdict(Decision("reuse", "within threshold"), asked, answered)

    # -- by a share --------------------------------------------------------------------------------------------------

    def most(self) -> Verdict:
        """The share of the tokens that need it most; of equal ones the earlier. Known without a look at the values.
        Under a cap those go first that would be reused too often, and the share is no less than lets all of them go.
        """
        policy, (frames, places) = self.policy, self.accumulated.shape
        alone = policy.vote is None
        scores = self.accumulated.flatten() if alone else self.accumulated.mean(0)
        count = counted(policy.share, len(scores))
        if self.ages is not None and policy.max_reuses is not None:
            count = max(count, math.ceil(len(scores) / (policy.max_reuses + 1)))
            ages = self.ages.flatten() if alone else self.ages.amax(0)
            scores = torch.where(urgent(ages, scores, count, policy.max_reuses), torch.inf, scores)
        index = largest(scores, count)
        if not alone:
            index = (torch.arange(frames, device=self.device)[:, None] * places + index).flatten()
        rows = Rows(index, self.grid)
        if rows.count == rows.tokens:
            self.clear()
            return Verdict.known(Decision("compute", "share"))
        self.reused(rows.mask(self.device).flatten(1))
        return Verdict.known(Decision("part", "share", rows=rows))

    def reused(self, computed: Tensor | None) -> None:
        """A step in which the tokens ``computed [frames, tokens per frame]`` were computed, None for none of them."""
        if computed is not None:
            self.accumulated = torch.where(computed, 0.0, self.accumulated)
        if self.ages is not None:
            self.ages = self.ages + 1
            self.ages = self.ages if computed is None else torch.where(computed, 0.0, self.ages)


def counted(share: float, tokens: int) -> int:
    """How many of ``tokens`` a share is, at least one."""
    return max(1, round(share * tokens))


def largest(scores: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest of ``scores [n]``, ascending; of equal ones the earlier."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def urgent(ages: Tensor, scores: Tensor, count: int, cap: int) -> Tensor:
    """Which tokens ``[n]`` must be among the ``count`` that are computed now, so that with as many at every later step
    none is ever reused more than ``cap`` times in a row: of those that can wait for ``left`` more steps all but
    ``left * count``, beginning with the largest ``scores``. Without a look at the values.
    """
    chosen = torch.zeros_like(ages, dtype=torch.bool)
    for left in range(min(cap, math.ceil(len(ages) / count))):
        among = ages >= cap - left
        order = torch.where(among, torch.where(chosen, torch.inf, scores), -torch.inf)
        ranks = order.argsort(descending=True, stable=True).argsort()
        chosen = chosen | (among & (ranks < among.sum() - left * count))
    return chosen
