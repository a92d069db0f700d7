"""Token-level reuse at its edges: shares that come out exactly, caps under a fixed share, no motion to go by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from test_motion_runs import SCHEDULE, STEPS, denoiser
from torch import Tensor

from flowcache_core.denoiser import ChunkInput
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.plan import blockwise
from flowcache_core.plan.base import Chunk
from flowcache_core.report.events import Event, StepTaken
from flowcache_core.reuse.base import Decision, ReusePolicy
from flowcache_core.reuse.motion import Motion
from flowcache_core.reuse.motion_reference import ReferenceMotion
from flowcache_core.reuse.partial_schedule import PartialSchedule
from flowcache_core.reuse.quantity import Quantity, Residual, Velocity
from flowcache_core.reuse.token_needs import TokenNeeds, urgent
from flowcache_core.schedule import shifted


@pytest.mark.parametrize(("minimum", "places"), [(0.55, 100), (0.55, 200), (0.7, 10), (0.35, 20)])
def test_as_many_tokens_as_the_minimum_are_not_held_back(minimum: float, places: int) -> None:
    """0.55 x 100 is more than 55 in floating point."""
    needs = TokenNeeds(Motion(threshold=1.0, minimum=minimum), (1, 1, places), torch.device("cpu"))
    enough = round(minimum * places)
    for count, action in ((enough, "part"), (enough - 1, "reuse")):
        needs.accumulated = torch.where(torch.arange(places) < count, 2.0, 0.5)[None]
        verdict = needs.verdict(0.1)
        verdict.settle(verdict.asked)
        assert verdict.decision.action == action


# ---- a cap under a fixed share ---------------------------------------------------------------------------------------


def decisions(policy: Motion, shape: Sequence[int], steps: int, seed: int) -> list[Decision]:
    """Of a chunk whose latents go their own random way, most of it in the upper half."""
    draw = torch.Generator().manual_seed(seed)
    state, latents = policy.begin(shifted(steps, 1.0), None), torch.randn(*shape, generator=draw)  # type: ignore[arg-type]
    speed = torch.linspace(1.0, 0.05, shape[3])[:, None]
    made = []
    for step in range(steps):
        made += state.decide([ChunkInput(Chunk(0, 0, shape[2]), step, 0.5, 500.0, latents)])
        latents = latents + speed * torch.randn(*shape, generator=draw)
    return made


def ages(made: Sequence[Decision], tokens: int) -> Tensor:
    """How often in a row each token was reused, at the end of every step ``[steps, tokens]``."""
    found, age = [], torch.zeros(tokens)
    for decision in made:
        assert decision.action != "reuse"
        computed = torch.ones(tokens, dtype=torch.bool)
        if decision.rows is not None:
            computed = decision.rows.mask(torch.device("cpu")).flatten()
        age = torch.where(computed, 0.0, age + 1)
        found.append(age)
    return torch.stack(found)


@pytest.mark.parametrize("vote", [None, 0.5])
@pytest.mark.parametrize(("share", "cap"), [(0.1, 2), (0.3, 2), (0.3, 3), (0.45, 4), (0.5, 1), (0.2, 9)])
def test_no_token_is_reused_more_often_than_the_cap(share: float, cap: int, vote: float | None) -> None:
    policy = Motion(threshold=9.0, warmup_steps=1, uniform_updates=0, floor=0.0, vote=vote, share=share, max_reuses=cap)
    for seed, shape in enumerate(((1, 4, 3, 7, 9), (2, 4, 2, 10, 22), (1, 4, 1, 2, 2))):
        policy_sees = (*shape[:2], max(2, shape[2]), *shape[3:])
        frames, places = policy_sees[2], math.prod(-(-size // 2) for size in shape[3:])
        made = decisions(policy, policy_sees, 24, seed)
        assert ages(made, frames * places).max() <= cap
        unit = places if vote is not None else frames * places
        wanted = max(1, round(share * unit), math.ceil(unit / (cap + 1)))
        counts = {one.rows.count for one in made if one.rows is not None}
        assert counts <= {wanted * (frames if vote is not None else 1)}


def test_need_decides_where_the_cap_leaves_room() -> None:
    """Of tokens that may all wait longer the neediest go; as soon as too many would be late, the oldest."""
    scores, count, cap = torch.tensor([0.9, 0.8, 0.1, 0.2, 0.3, 0.4]), 2, 3
    assert not urgent(torch.zeros(6), scores, count, cap).any()
    assert urgent(torch.tensor([0.0, 0, 3, 1, 1, 1]), scores, count, cap).tolist() == [False, False, True] + 3 * [False]
    late = urgent(torch.tensor([0.0, 0, 2, 2, 2, 2]), scores, count, cap)
    assert late.tolist() == [False, False, False, False, True, True]


# ---- one frame at the video's start ----------------------------------------------------------------------------------

ALONE: dict[str, tuple[ReusePolicy, Quantity]] = {
    "by need": (Motion(threshold=0.2, warmup_steps=2, uniform_updates=0, floor=0.1, minimum=0.0), Velocity()),
    "fixed share": (Motion(warmup_steps=2, uniform_updates=0, share=0.4), Velocity()),
    "partial schedule, motion": (
        PartialSchedule(warmup_steps=1, computed=(0, 4, 7), partial=(2, 6), share=0.4, chosen_by="motion"),
        Velocity(),
    ),
    "as published": (
        ReferenceMotion(threshold=0.2, warmup_steps=2, uniform_updates=0, floor=0.1, minimum=0.0, always_last=False),
        Residual(),
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_one_frame_at_the_start_is_computed_whole_and_later_ones_in_part(name: str) -> None:
    policy, quantity = ALONE[name]
    noise = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(4))
    events: list[Event] = []
    plan = blockwise(frames=3, chunk_frames=1, steps=STEPS)
    settings = EngineSettings(plan, SCHEDULE, policy=policy, quantity=quantity)
    latents = generate(denoiser(), settings, noise, observe=events.append)
    steps = [event for event in events if isinstance(event, StepTaken)]
    assert latents.isfinite().all()
    assert all(step.action != "part" for step in steps if step.chunk == 0)
    assert any(step.action == "part" for step in steps if step.chunk > 0)
