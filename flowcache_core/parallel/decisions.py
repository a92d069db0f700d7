"""Decisions made once, on rank 0, and told to the others: ranks that measure by themselves may differ in a last bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from ..denoiser import ChunkInput
from ..reuse.base import Decision, PolicyState, Reason, ReusePolicy
from ..reuse.read import OneRead
from ..rows import Rows
from .errors import answered
from .mesh import Mesh

Action = Literal["compute", "part", "reuse"]
ACTIONS: tuple[Action, ...] = get_args(Action)
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass
class ToldDecisions(PolicyState):
    """Rank 0 asks ``own``, its policy's state; the others take what it says. One broadcast of eight numbers a chunk
    and tick, on the CPU."""

    own: PolicyState | None
    mesh: Mesh = field(default_factory=Mesh)

    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        decisions = [] if self.own is None else self.own.decide(items)
        told = torch.zeros(len(items), 8, dtype=torch.float64)
        if self.own is not None:
            told = torch.tensor([_numbers(decision) for decision in decisions], dtype=torch.float64)
        with answered(self.mesh.timeout):
            dist.broadcast(told, 0)
        return [self.told(row, decisions[n] if decisions else None) for n, row in enumerate(told.tolist())]

    def told(self, row: Sequence[float], own: Decision | None) -> Decision:
        """The decision behind ``row``; which tokens are computed, where it is some, comes in a message of its own."""
        action, reason, distance, accumulated, count, *grid = row
        rows = None
        if count:
            index = torch.empty(int(count), dtype=torch.int64)
            if own is not None and own.rows is not None:
                index = own.rows.on(torch.device("cpu")).clone()
            with answered(self.mesh.timeout):
                dist.broadcast(index, 0)
            rows = Rows(index, (int(grid[0]), int(grid[1]), int(grid[2])))
        return Decision(ACTIONS[int(action)], REASONS[int(reason)], _number(distance), _number(accumulated), rows)

    def read_with(self, reader: OneRead) -> None:
        super().read_with(reader)
        if self.own is not None:
            self.own.read_with(reader)

    def observe(self, item: ChunkInput, velocity: Tensor) -> None:
        if self.own is not None:
            self.own.observe(item, velocity)

    def overridden(self, chunk: int) -> None:
        if self.own is not None:
            self.own.overridden(chunk)

    def finish(self, chunk: int) -> None:
        if self.own is not None:
            self.own.finish(chunk)


def told_by_first(state: PolicyState, policy: ReusePolicy, mesh: Mesh) -> PolicyState:
    """``state`` as all ranks follow it. What follows from settings alone (lists, intervals) needs no telling."""
    if mesh.shape.size == 1 or (policy.content_free and not policy.reads_model):
        return state
    return ToldDecisions(state.schedule, state if mesh.rank == 0 else None, mesh)


def _numbers(decision: Decision) -> tuple[float, ...]:
    measured = (decision.distance, decision.accumulated)
    distance, accumulated = (math.nan if value is None else value for value in measured)
    tokens = (0, 0, 0, 0) if decision.rows is None else (decision.rows.count, *decision.rows.grid)
    return ACTIONS.index(decision.action), REASONS.index(decision.reason), distance, accumulated, *tokens


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
