"""Decisions made once, on rank 0, and told to the others: ranks that measure by themselves may differ in a last bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
import torch.distributed as dist
from torch import Tensor

from ..denoiser import ChunkInput
from ..errors import require
from ..reuse.base import Decision, PolicyState, Reason, ReusePolicy
from ..reuse.read import OneRead
from .errors import answered
from .mesh import Mesh

REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass
class ToldDecisions(PolicyState):
    """Rank 0 asks ``own``, its policy's state; the others take what it says. One broadcast of four numbers a chunk and
    tick, on the CPU."""

    own: PolicyState | None
    mesh: Mesh = field(default_factory=Mesh)

    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        told = torch.zeros(len(items), 4, dtype=torch.float64)
        if self.own is not None:
            told = torch.tensor([_numbers(decision) for decision in self.own.decide(items)], dtype=torch.float64)
        with answered(self.mesh.timeout):
            dist.broadcast(told, 0)
        return [_decision(row) for row in told.tolist()]

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
    accepted = f"another with several ranks: {policy.name} has tokens chosen on the device, and only decisions are told"
    require(policy.parts == "never", "policy", policy.name, accepted)
    return ToldDecisions(state.schedule, state if mesh.rank == 0 else None, mesh)


def _numbers(decision: Decision) -> tuple[float, float, float, float]:
    measured = (decision.distance, decision.accumulated)
    distance, accumulated = (math.nan if value is None else value for value in measured)
    return float(decision.reuses), float(REASONS.index(decision.reason)), distance, accumulated


def _decision(row: Sequence[float]) -> Decision:
    reuses, reason, *measured = row
    distance, accumulated = (None if math.isnan(value) else value for value in measured)
    return Decision("reuse" if reuses else "compute", REASONS[int(reason)], distance, accumulated)
