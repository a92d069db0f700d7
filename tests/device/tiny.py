"""Tiny models with random weights, and one run of the engine on any device, watched tick by tick."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from flowcache_core.denoiser import Denoiser
from flowcache_core.dry_run.traffic import Copy, Count, Sync
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.models.magi.config import MagiConfig
from flowcache_core.models.magi.denoiser import MagiDenoiser
from flowcache_core.models.magi.guidance import GuidanceScales
from flowcache_core.models.magi.transformer import MagiTransformer
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.guidance_refresh import GuidanceRefresh
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.plan import blockwise, staggered, window
from flowcache_core.report.events import AttentionDensity, CacheCompressed, Event, StepTaken
from flowcache_core.schedule import magi, magi_distill_times, shifted

WAN = WanConfig(dim=48, ffn_dim=64, num_layers=2, num_heads=3, text_dim=20, freq_dim=32, fps_embedding=True)
MAGI = MagiConfig(48, 40, 2, 6, 2, 8, 12, text_dim=20, text_len=60, freq_dim=16, bands=1)
CHUNK_FRAMES, CHUNKS, STEPS = 2, 4, 6
# For MAGI-1's distilled weights, which know only some numbers of steps.
MAGI_STEPS = 8
PLANS = {"blockwise": blockwise, "staggered": staggered, "window": window}
PLAN_FIELDS: dict[str, dict[str, int]] = {"blockwise": {}, "staggered": {"ar_step": 2}, "window": {"window_chunks": 2}}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(model: nn.Module, scale: float = 0.3) -> nn.Module:
    """Weights that let every part of the model matter."""
    draw = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = scale * torch.randn(parameter.shape, generator=draw)
    return model.eval().requires_grad_(False)


@lru_cache
def wan_model() -> WanTransformer:
    return filled(WanTransformer(WAN))  # type: ignore[return-value]


@lru_cache
def magi_model() -> MagiTransformer:
    return filled(MagiTransformer(MAGI))  # type: ignore[return-value]


def on(model: nn.Module, device: str) -> Any:
    return copy.deepcopy(model).to(device)


def wan(device: str, *, branches: int = 2, switches: Sequence[int] = (0,), every: int = 1) -> WanDenoiser:
    """switches: the chunks at which a prompt of their own begins. every: how often guidance is refreshed."""
    prompts = {at: [drawn(1, 5, 20, seed=10 * at + b).to(device) for b in range(branches)] for at in switches}
    made = WanDenoiser if every == 1 else partial(GuidanceRefresh, every=every)
    return made(on(wan_model(), device), prompts, guidance=3.0 if branches == 2 else 1.0, fps=24)


def magi_denoiser(device: str, *, base: bool = False, ranges: tuple[int, ...] = ()) -> MagiDenoiser:
    """Captions lie on the CPU, as a text encoder leaves them; each chunk has its own."""
    captions = {}
    for chunk in range(CHUNKS):
        mask = torch.zeros(1, 60)
        mask[:, : 3 + chunk] = 1
        captions[chunk] = (drawn(1, 60, 20, seed=chunk), mask)
    model = on(magi_model(), device)
    if base:
        return MagiDenoiser(model, captions, guidance=GuidanceScales(), ranges=ranges)
    return MagiDenoiser(model, captions, step_times=magi_distill_times(MAGI_STEPS), ranges=ranges)


def settings(plan: str = "staggered", prefix_frames: int = 0, **changes: Any) -> EngineSettings:
    made = PLANS[plan](CHUNK_FRAMES * CHUNKS, CHUNK_FRAMES, STEPS, prefix_frames=prefix_frames, **PLAN_FIELDS[plan])
    return EngineSettings(**({"plan": made, "schedule": shifted(STEPS, 5.0)} | changes))


def magi_settings(prefix_frames: int = 0, **changes: Any) -> EngineSettings:
    plan = window(CHUNK_FRAMES * CHUNKS, CHUNK_FRAMES, MAGI_STEPS, 2, prefix_frames)
    values = {"plan": plan, "schedule": magi(MAGI_STEPS), "clean_pass": True, "clean_timestep": 0.9999}
    return EngineSettings(**(values | changes))


@dataclass(repr=False)
class Watched:
    """A run's latents on the CPU, its events, and what it asked of the device by tick (-1: before the first)."""

    latents: Tensor
    events: list[Event] = field(default_factory=list)
    syncs: dict[int, list[Sync]] = field(default_factory=dict)
    copies: dict[int, list[Copy]] = field(default_factory=dict)

    @property
    def steps(self) -> list[StepTaken]:
        return [event for event in self.events if isinstance(event, StepTaken)]

    @property
    def reused(self) -> int:
        return sum(step.action != "compute" for step in self.steps)

    @property
    def parts(self) -> int:
        """Steps in which some of a chunk's tokens were computed."""
        return sum(step.action == "part" for step in self.steps)

    @property
    def compressions(self) -> int:
        return sum(isinstance(event, CacheCompressed) for event in self.events)


def watched(denoiser: Denoiser, engine: EngineSettings, device: str, count: Count | None = None) -> Watched:
    """Run ``engine``; its prefix, where the plan has one, is drawn too."""
    noise = drawn(1, 16, engine.plan.frames, 4, 4, seed=7).to(device)
    given = engine.plan.prefix_frames
    prefix = drawn(1, 16, given, 4, 4, seed=8).to(device) if given else None
    result = Watched(noise)
    if count is not None:
        count.syncs.clear()
        count.copies.clear()

    def observe(event: Event) -> None:
        result.events.append(event)
        late = isinstance(event, AttentionDensity)  # told when it is known, of a tick that may be long over
        tick = None if late else getattr(event, "tick", None if result.syncs else -1)
        if count is not None and tick is not None:  # a pass over a finished chunk has none: it counts to what follows
            result.syncs.setdefault(tick, []).extend(count.syncs)
            result.copies.setdefault(tick, []).extend(count.copies)
            count.syncs.clear()
            count.copies.clear()

    latents = generate(denoiser, engine, noise, prefix=prefix, observe=observe)
    if count is not None:
        result.syncs[len(engine.plan.ticks)] = list(count.syncs)
        result.copies[len(engine.plan.ticks)] = list(count.copies)
    result.latents = latents.to("cpu")
    return result
