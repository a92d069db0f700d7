"""Which steps of a run will be computed, as far as the settings alone say so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch

from ..denoiser import ChunkInput, ModelView

if TYPE_CHECKING:
    from ..engine.settings import EngineSettings


def foretold(settings: EngineSettings) -> Iterator[bool | None]:
    """For every chunk step, in the order in which the plan takes them: computed, or reused; None where it depends on
    the video or the weights.
    """
    policy = settings.policy
    if policy.content_free and not policy.reads_model:
        yield from _decided(settings)
        return
    for tick in settings.plan.ticks:
        for item in tick.steps:
            forced = item.step < policy.warmup_steps or (policy.always_last and item.step == settings.plan.steps - 1)
            yield True if forced or settings.computes_all(tick.index) else None


def _decided(settings: EngineSettings) -> Iterator[bool]:
    """What the policy decides without a video, overridden as the engine does (``engine.run.Run.tick``)."""
    plan, schedule, nothing = settings.plan, settings.schedule, torch.empty(0)
    state = settings.policy.begin(schedule, cast(ModelView, None))
    for tick in plan.ticks:
        items = [
            ChunkInput(plan.chunks[s.chunk], s.step, schedule.sigmas[s.step], schedule.timesteps[s.step], nothing)
            for s in tick.steps
        ]
        computed = [not decision.reuses for decision in state.decide(items)]
        window = settings.attention != "block-causal" and any(computed)
        for item, computes in zip(items, computed, strict=True):
            if not computes and (window or settings.computes_all(tick.index)):
                state.overridden(item.chunk.index)
            yield computes or window or settings.computes_all(tick.index)
