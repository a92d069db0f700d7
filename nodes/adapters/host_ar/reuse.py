"""Reuse inside the host's own AR sampler: a step that is skipped answers with what an earlier one computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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
    """What policies and distances ask of a model; the host's sampler does everything else itself."""

    model: Any
    device: Any

    def guide(self, velocity: Tensor, item: ChunkInput) -> Tensor:
        return velocity[0]

    def patch_embedding(self, item: ChunkInput) -> Tensor:
        return patch_embedding(self.model.diffusion_model, item.latents)

    def time_modulation(self, timestep: float) -> Tensor:
        return time_modulation(self.model, timestep, self.device)


@dataclass
class StepReuse:
    """State of one run. The host's sampler has one chunk in work at a time, so one history is enough.

    gap: the steps reused since the last computed one, and the clean predictions that the sampler was answered.
    """

    settings: EngineSettings
    policy: PolicyState
    denoiser: Any
    history: deque[Computed] = field(init=False)
    gap: list[tuple[ChunkInput, Tensor]] = field(default_factory=list, init=False)
    newest: tuple[ChunkInput, Tensor] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.history = deque(maxlen=self.settings.quantity.keep)

    def step(self, item: ChunkInput, compute: Callable[[], Tensor]) -> tuple[Tensor, Decision]:
        """The clean prediction ``[B, C, f, H, W]``, from ``compute`` or from the history: ``x - sigma * velocity``."""
        if item.step == 0:
            self.forget()
        self.complete(item)
        (decision,) = self.policy.decide([item])
        if self.settings.computes_all(self.settings.plan.first_tick[item.chunk.index] + item.step):
            decision = self.policy.override(item, decision, "last step")
        if decision.reuses:
            # No operation of the host runs here that would notice an interrupt.
            comfy.model_management.throw_exception_if_processing_interrupted()
            sigma_next = self.settings.schedule.sigmas[item.step + 1]
            velocity = self.settings.quantity.velocity(tuple(self.history), item, sigma_next, self.denoiser)[0]
            clean = item.latents - item.sigma * velocity.to(item.latents.device)
            if self.settings.quantity.corrects:
                self.gap.append((item, clean))
            return clean, decision
        clean = compute()
        velocity = ((item.latents - clean) / item.sigma).unsqueeze(0)
        if self.gap:
            item = self.close_gap(item, velocity)
            clean = item.latents - item.sigma * velocity[0]
        self.newest = (item, velocity)
        self.policy.observe(*self.newest)
        return clean, decision

    def close_gap(self, item: ChunkInput, velocity: Tensor) -> ChunkInput:
        """As the engine's: the computed step ``item``, from where the reused ones lead when gone through again knowing
        it. The sampler keeps its noise and takes ``(1 - sigma)`` of an answer, so that much of a correction arrives.
        """
        nodes = [*((one.item.sigma, one.velocity.to(velocity)) for one in self.history), (item.sigma, velocity)]
        latents = self.gap[0][0].latents
        following = (*(reused for reused, _ in self.gap[1:]), item)
        for (reused, answered), after in zip(self.gap, following, strict=True):
            clean = latents - reused.sigma * self.settings.quantity.between(nodes, reused.sigma)[0]
            latents = after.latents + (1 - after.sigma) * (clean - answered)
        self.gap.clear()
        return replace(item, latents=latents)

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
        self.gap.clear()
        self.newest = None
