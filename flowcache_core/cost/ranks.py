"""What several ranks make of a run: traffic, idle time and speed-up, counted over the events of the engine's own run.

A forward takes its FLOPs over what a rank computes a second, an exchange its bytes over the link; nothing overlaps.
Four ways to share the work: guidance branches, attention heads, both (what ``parallel/`` does), and a pipeline in which
the chunks that are active at a tick lie on different ranks (which it does not do: this says what it would give).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..parallel.shape import MeshShape, Shareable
from ..report.events import CachePass, Event, StepTaken, WindowPass
from .shapes import MagiShape, ModelShape, WanShape

HEAD_DIM = 128


@dataclass(frozen=True)
class Machine:
    """flops: that a rank computes in a second. link: bytes a second that a rank sends, while it receives as many.
    value_bytes: of one value on its way.
    """

    flops: float
    link: float
    value_bytes: int = 2


@dataclass(frozen=True)
class Sharing:
    """One way to share a run. sent: bytes that the busiest rank sends. bubbles: share of the ranks' time without work,
    exchanges left out. exchanging: share of the time that goes into exchanges.
    """

    name: str
    seconds: float
    speed_up: float
    sent: float
    bubbles: float
    exchanging: float


@dataclass
class Clock:
    """Time of ranks that wait for one another at every forward."""

    ranks: int
    machine: Machine
    working: float = 0.0
    busiest: float = 0.0
    sent: float = 0.0

    def together(self, flops: Sequence[float], sent: float) -> None:
        """Every rank works, then the busiest one's ``sent`` bytes are exchanged."""
        self.working += sum(flops)
        self.busiest += max(flops)
        self.sent += sent

    def sharing(self, name: str, alone: float) -> Sharing:
        computing, moving = self.busiest / self.machine.flops, self.sent / self.machine.link
        bubbles = 1 - self.working / (self.ranks * self.busiest)
        return Sharing(
            name, computing + moving, alone / (computing + moving), self.sent, bubbles, moving / (computing + moving)
        )


def heads_of(shape: ModelShape) -> Shareable:
    """Heads of a model of this shape, as far as ranks can share them; branches are the run's."""
    assert isinstance(shape, WanShape | MagiShape)
    kv_dim = shape.kv_dim if isinstance(shape, MagiShape) else shape.dim
    return Shareable(1, shape.dim // HEAD_DIM, kv_dim // HEAD_DIM)


@dataclass(frozen=True)
class Run:
    """events: of the engine's run. latent_values: of one token, which the velocity has."""

    shape: ModelShape
    events: Sequence[Event]
    branches: int
    machine: Machine
    latent_values: int = 64

    @property
    def forwards(self) -> list[tuple[Event, float, int]]:
        """Every event that computes, FLOPs of one of its branches, and its own tokens."""
        found: list[tuple[Event, float, int]] = []
        for event in self.events:
            flops = self.shape.event(event)
            if flops and isinstance(event, StepTaken | CachePass | WindowPass):
                own = sum(event.chunk_tokens) if isinstance(event, WindowPass) else event.tokens
                found.append((event, flops / self.branches, own))
        return found

    def twice(self, event: Event) -> bool:
        """Whether a step has the second forward of MAGI-1's distilled weights."""
        begins = self.shape.nearly_clean_from if isinstance(self.shape, MagiShape) else None
        return begins is not None and isinstance(event, StepTaken) and event.step >= begins

    @property
    def alone(self) -> float:
        """Seconds on one rank."""
        return sum(flops for _, flops, _ in self.forwards) * self.branches / self.machine.flops

    def on_mesh(self, mesh: MeshShape, name: str) -> Sharing:
        """Branches and heads on ranks, as :mod:`..parallel` does."""
        clock = Clock(mesh.size, self.machine)
        most = math.ceil(self.branches / mesh.cfg)
        counts = [self.branches // mesh.cfg + (rank < self.branches % mesh.cfg) for rank in range(mesh.cfg)]
        for event, flops, tokens in self.forwards:
            passes = most * (2 if self.twice(event) else 1)
            sent = passes * head_bytes(self.shape, tokens, mesh.heads) * self.machine.value_bytes
            if mesh.cfg > 1 and not isinstance(event, CachePass):
                sent += most * (mesh.cfg - 1) * tokens * self.latent_values * 4  # velocities are fp32
            clock.together([count * flops / mesh.heads for count in counts for _ in range(mesh.heads)], sent)
        return clock.sharing(name, self.alone)

    def pipeline(self, ranks: int) -> Sharing:
        """Chunk i on rank i mod ``ranks``; a rank sends its chunk's K/V to all others whenever it is written, layer by
        layer, and the chunk behind follows a layer later. Passes over single chunks have nothing beside them."""
        clock = Clock(ranks, self.machine)
        layers = max(1, getattr(self.shape, "layers", 1))
        kv = self.shape.kv_bytes_per_token * self.machine.value_bytes / 2 * self.branches
        rounds: dict[int, list[tuple[int, float, int]]] = {}
        for number, (event, flops, tokens) in enumerate(self.forwards):
            work = flops * self.branches
            if isinstance(event, StepTaken):
                rounds.setdefault(event.tick, []).append((event.chunk, work, tokens))
            else:
                rounds[-1 - number] = [(getattr(event, "chunk", 0), work, tokens)]
        for steps in rounds.values():
            loads, sends = [0.0] * ranks, [0.0] * ranks
            for chunk, work, tokens in steps:
                loads[chunk % ranks] += work
                sends[chunk % ranks] += tokens * kv * (ranks - 1)
            follow = (min(len(steps), ranks) - 1) * max(work for _, work, _ in steps) / layers
            clock.together(loads, max(sends))
            clock.busiest += follow
        return clock.sharing("chunk pipeline", self.alone)


def head_bytes(shape: ModelShape, tokens: int, ranks: int) -> float:
    """Values that one rank sends in one forward of one branch: q, k and v to their heads and the output back in every
    layer, and its tokens to all at the end.
    """
    if ranks == 1:
        return 0.0
    assert isinstance(shape, WanShape | MagiShape)
    kv_dim = shape.kv_dim if isinstance(shape, MagiShape) else shape.dim
    away = (ranks - 1) / ranks
    layer = tokens / ranks * (2 * shape.dim + 2 * kv_dim) * away
    return shape.layers * layer + tokens / ranks * shape.dim * (ranks - 1)


def shared(run: Run, ranks: int) -> list[Sharing]:
    """All ways in which ``ranks`` ranks can share the run, the fastest first."""
    one = heads_of(run.shape)
    model = Shareable(run.branches, one.heads, one.kv_heads)
    found = [run.on_mesh(mesh, named(mesh)) for mesh in model.shapes(ranks)]
    if any(isinstance(event, StepTaken) and event.context_tokens for event in run.events):
        found.append(run.pipeline(ranks))  # a bidirectional window is one forward
    return sorted(found, key=lambda sharing: sharing.seconds)


def named(mesh: MeshShape) -> str:
    if mesh.heads == 1:
        return "branches"
    return "heads" if mesh.cfg == 1 else f"branches x heads ({mesh})"


def as_text(ways: Sequence[Sharing]) -> str:
    """One line a way."""
    lines = [f"  {'':24} {'speed-up':>8} {'seconds':>9} {'sent by a rank':>15} {'exchanging':>10} {'idle':>6}"]
    for way in ways:
        size = f"{way.sent / 1e9:,.1f} GB"
        shares = f"{way.exchanging:10.0%} {way.bubbles:6.0%}"
        lines.append(f"  {way.name:24} {way.speed_up:7.2f}x {way.seconds:9.1f} {size:>15} {shares}")
    return "\n".join(lines)
