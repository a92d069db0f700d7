"""One chunk on its way through its steps: latents, solver, and what reuse remembers of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..denoiser import ChunkInput, ChunkOutput, Denoiser
from ..plan.base import Chunk
from ..reuse.quantity import Computed, Part, Quantity, history_with_part
from ..schedule import Schedule
from ..solvers.base import SolverState


@dataclass
class ActiveChunk:
    """State of a chunk between its first step and its last.

    For every step in order: :meth:`item`, then for a reused one :meth:`reused_velocity`, then :meth:`take`, or for one
    of which some tokens are computed :meth:`take_part`.

    latents: ``[B, C, f, H, W]``, replaced and never written to. guide: the denoiser's, from branch velocities
    ``[branches, B, ...]`` to one. held: leading frames that are given and put back after each step, or None. keep_on:
    device of what is kept for reuse, None for the latents' own. history: the last computed steps, oldest first. gap:
    the steps reused since. resume: latents and solver behind the last computed step, from where a quantity that
    corrects goes through the gap again.
    """

    chunk: Chunk
    latents: Tensor
    solver: SolverState
    quantity: Quantity
    guide: Callable[[Tensor, ChunkInput], Tensor]
    held: Tensor | None = None
    keep_on: str | None = None
    history: deque[Computed] = field(init=False)
    gap: list[ChunkInput] = field(default_factory=list, init=False)
    resume: tuple[Tensor, SolverState] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.history = deque(maxlen=self.quantity.keep)

    def item(self, step: int, schedule: Schedule, before: Tensor | None = None) -> ChunkInput:
        sigma, time = schedule.sigmas[step], schedule.timesteps[step]
        return ChunkInput(self.chunk, step, sigma, time, self.latents, before=before)

    def reused_velocity(self, item: ChunkInput, sigma_next: float, denoiser: Denoiser) -> Tensor:
        velocity = self.quantity.velocity(tuple(self.history), item, sigma_next, denoiser)
        return velocity.to(item.latents.device)

    def take(self, item: ChunkInput, velocity: Tensor, *, computed: bool, residual: Tensor | None = None) -> ChunkInput:
        """The step. Returns it as it was taken: a computed one behind reused ones may begin from corrected latents."""
        item = replace(item, before=None)  # it is kept, and a neighbour's latents must not be
        if not computed:
            self.gap.append(item)
            self.advance(item, velocity)
            return item
        if self.gap:
            item = self.close_gap(item, velocity)
        self.advance(item, velocity)
        self.history.append(Computed(item, velocity, self.latents - item.latents, residual).to(self.keep_on))
        if self.quantity.corrects:
            self.resume = (self.latents, self.solver.snapshot())
        return item

    def take_part(self, item: ChunkInput, output: ChunkOutput, reused: Tensor) -> Tensor:
        """A step of which ``output`` has some tokens, the others are ``reused``. Returns its velocity.

        In a gap that is gone through again it stays one of the steps between: what was computed is one of its nodes.
        """
        assert output.rows is not None
        item, part = replace(item, before=None), Part.of(output.rows, output.repeated, reused)
        velocity = torch.where(part.velocities, output.velocity, reused)
        self.gap.append(item)
        self.advance(item, velocity)
        newer = Computed(item, velocity, self.latents - item.latents, output.residual).to(self.keep_on)
        merged = history_with_part(tuple(self.history), newer, part.to(self.keep_on))
        self.history = deque(merged, maxlen=self.quantity.keep)
        return velocity

    def advance(self, item: ChunkInput, velocity: Tensor) -> None:
        """One solver step from ``item.latents``; frames of the chunk that are given stay as they are."""
        self.latents = self.holding(self.solver.step(item.latents, self.guide(velocity, item), item.step))

    def holding(self, latents: Tensor) -> Tensor:
        """``latents``, written to, with the frames that are given put back."""
        if self.held is not None:
            latents[:, :, : self.held.shape[2]] = self.held
        return latents

    def close_gap(self, item: ChunkInput, velocity: Tensor) -> ChunkInput:
        """The computed step ``item``, from where its reused predecessors lead when gone through again knowing it."""
        if self.resume is not None:
            nodes = [*((one.sigma, one.velocity.to(velocity)) for one in self.history), (item.sigma, velocity)]
            self.latents, self.solver = self.resume
            for reused in self.gap:
                here = replace(reused, latents=self.latents)
                self.advance(here, self.quantity.between(nodes, reused.sigma))
            item = replace(item, latents=self.latents)
        self.gap.clear()
        return item
