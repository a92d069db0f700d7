"""Reuse inside the host's own AR sampler: a step that is skipped answers with what an earlier one computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
from torch import Tensor

from ....flowcache_core.denoiser import ChunkInput
from ....flowcache_core.engine import EngineSettings
from ....flowcache_core.plan.base import Chunk
from ....flowcache_core.reuse.base import Decision, PolicyState
from ....flowcache_core.reuse.quantity import Computed
from ..wan.embeddings import patch_embedding, time_modulation


@dataclass(frozen=True)
class Embeddings:
    """As much of a denoiser as distances ask for; the host's sampler does everything else itself."""

    model: Any
    device: Any

    def patch_embedding(self, item: ChunkInput) -> Tensor:
        return patch_embedding(self.model.diffusion_model, item.latents)

    def time_modulation(self, timestep: float) -> Tensor:
        return time_modulation(self.model, timestep, self.device)


@dataclass
class StepReuse:
    """State of one run. The host's sampler has one chunk in work at a time, so one history is enough."""

    settings: EngineSettings
    policy: PolicyState
    denoiser: Any
    history: deque[Computed] = field(init=False)
    newest: tuple[ChunkInput, Tensor] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.history = deque(maxlen=self.settings.quantity.keep)

    def step(self, item: ChunkInput, compute: Callable[[], Tensor]) -> tuple[Tensor, Decision]:
        """The clean prediction ``[B, C, f, H, W]``, from ``compute`` or from the history: ``x - sigma * velocity``."""
        if item.step == 0:
            self.forget()
        self.complete(item)
        (decision,) = self.policy.decide([item])
        if decision.reuses:
            # No operation of the host runs here that would notice an interrupt.
            comfy.model_management.throw_exception_if_processing_interrupted()
            sigma_next = self.settings.schedule.sigmas[item.step + 1]
            velocity = self.settings.quantity.velocity(self.history, item, sigma_next, self.denoiser)[0]
            return item.latents - item.sigma * velocity.to(item.latents.device), decision
        clean = compute()
        self.newest = (item, ((item.latents - clean) / item.sigma).unsqueeze(0))
        self.policy.observe(*self.newest)
        return clean, decision

    def complete(self, now: ChunkInput) -> None:
        """The increment of a computed step is known when the sampler comes back with what it made of it."""
        if self.newest is not None:
            item, velocity = self.newest
            computed = Computed(item, velocity, now.latents - item.latents)
            self.history.append(computed.to(self.settings.reuse_device))
            self.newest = None

    def finish(self, chunk: Chunk) -> None:
        """``chunk`` is done: nothing of it is kept, in the policy neither."""
        self.policy.finish(chunk.index)
        self.forget()

    def forget(self) -> None:
        self.history.clear()
        self.newest = None
