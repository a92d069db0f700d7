"""The motion policy: against golden data of the published rules, its laws in real runs, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from flowcache_core.denoiser import ChunkInput
from flowcache_core.plan.base import Chunk
from flowcache_core.reuse.distance import Change
from flowcache_core.reuse.motion import Motion
from flowcache_core.reuse.motion_reference import ReferenceMotion
from flowcache_core.reuse.motion_weights import hidden_motion, motion_weights, rescaled
from flowcache_core.reuse.quantity import Computed
from flowcache_core.reuse.token_needs import TokenNeeds
from flowcache_core.schedule import shifted

GOLDEN = Path(__file__).parents[1] / "golden"
WEIGHTS = load_file(GOLDEN / "motion_weights.safetensors")
EXAMPLE = json.loads((GOLDEN / "motion_decisions.json").read_text())
EVENTS = load_file(GOLDEN / "motion_decisions.safetensors")


# ---- golden ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [key for key in WEIGHTS if key.startswith("magi.") and key.endswith("weights")])
def test_golden_weights_of_latents_as_for_magi(key: str) -> None:
    """Chunks of six frames; only frame 0 of the video has nothing to be compared with."""
    base, first, end, floor, power = re.fullmatch(
        r"(.*)\.window(\d+)_(\d+)\.floor(.*)\.power(.*)\.weights", key
    ).groups()
    latents, expected = WEIGHTS[f"{base}.latents"][None], WEIGHTS[key]
    for chunk in range(int(first), int(end)):
        own = slice(6 * chunk, 6 * chunk + 6)
        before = latents[:, :, 6 * chunk - 1] if chunk else None
        options = {"relative": False, "power": float(power), "copies_second": False}
        found = motion_weights(latents[:, :, own], before, float(floor), **options)
        assert (found - expected[own]).abs().max() <= 5e-6


@pytest.mark.parametrize("case", ["first", "later"])
def test_golden_weights_of_latents_as_for_skyreels(case: str) -> None:
    before = WEIGHTS["sky_latent.previous_last_frame"][None] if case == "later" else None
    found = motion_weights(WEIGHTS["sky_latent.latents"][None], before, 0.6)
    assert (found - WEIGHTS[f"sky_latent.{case}.max_rescale0.6.weights"]).abs().max() <= 5e-6


HIDDEN = [key for key in WEIGHTS if re.fullmatch(r"sky\..*\.(first|later)\.max_rescale.*\.weights", key)]


@pytest.mark.parametrize("key", HIDDEN)
def test_golden_weights_of_hidden_states(key: str) -> None:
    base, case, floor = re.fullmatch(r"(.*)\.(first|later)\.max_rescale(.*)\.weights", key).groups()
    before = WEIGHTS[f"{base}.previous_last_frame"] if case == "later" else None
    found = rescaled(hidden_motion(WEIGHTS[f"{base}.hidden"], before), float(floor))
    assert (found - WEIGHTS[key]).abs().max() <= 5e-6


def golden_weights(row: int) -> Tensor:
    """W behind event ``row``, from the hidden states there and of the chunk before, as each branch saw it last."""
    hidden = EVENTS["h"].unflatten(1, (EXAMPLE["frames"], -1))[EVENTS["h_index"][row]]
    chunk, branch = EVENTS["group"][row], EVENTS["branch"][row]
    if chunk == 0:
        return rescaled(hidden_motion(hidden), EXAMPLE["floor"])
    earlier = [r for r in range(row) if EVENTS["branch"][r] == branch and EVENTS["group"][r] == chunk - 1]
    known = [r for r in earlier if EVENTS["h_index"][r] >= 0]
    before = EVENTS["h"].unflatten(1, (EXAMPLE["frames"], -1))[EVENTS["h_index"][known[-1]]][-1]
    return rescaled(hidden_motion(hidden, before), EXAMPLE["floor"])


@pytest.mark.parametrize("branch", [0, 1])
@pytest.mark.parametrize("chunk", [0, 1])
def test_golden_decisions(branch: int, chunk: int) -> None:
    """Every path of the published SkyReels rule: whole, part, nothing, held back by the minimum, the vote's resets."""
    policy = Motion(
        threshold=EXAMPLE["threshold"],
        warmup_steps=EXAMPLE["warmup"] + 1,
        floor=EXAMPLE["floor"],
        uniform_updates=EXAMPLE["phase1_updates"],
        vote=EXAMPLE["vote"],
        minimum=EXAMPLE["min_ratio"],
        always_last=False,
    )
    grid = (EXAMPLE["frames"], EXAMPLE["height"], EXAMPLE["width"])
    needs = TokenNeeds(policy, grid, torch.device("cpu"))
    mine = (EVENTS["branch"] == branch) & (EVENTS["group"] == chunk)
    weights, seen = None, set()
    for row in mine.nonzero().flatten().tolist():
        step = int(EVENTS["step"][row])
        if step < policy.warmup_steps:
            needs.clear()
        else:
            uniform = needs.uniform(step)
            assert uniform == (not EVENTS["phase2"][row])
            needs.grow(float(EVENTS["d"][row]), None if uniform else weights)
            assert torch.allclose(needs.accumulated.flatten(), EVENTS["A_tested"][row], rtol=0, atol=1e-6)
            verdict = needs.verdict(float(EVENTS["d"][row]))
            verdict.settle(verdict.asked)
            computed = EVENTS["computed"][row].bool()
            action = ["reuse", "part", "compute"][int(EVENTS["action"][row])]
            seen.add(action)
            assert verdict.decision.action == action, row
            if action == "part":
                assert torch.equal(verdict.decision.rows.index, computed.nonzero().flatten())
            assert torch.allclose(needs.accumulated.flatten(), EVENTS["A_after"][row], rtol=0, atol=1e-6)
        if EVENTS["h_index"][row] >= 0:
            weights = golden_weights(row)
            assert torch.allclose(weights.flatten(), EVENTS["W_after"][row], rtol=0, atol=5e-6)
    assert {"reuse", "compute"} <= seen


class Given:
    """A distance and a model that say what was recorded: distances by step, hidden states as residuals."""

    def sums(self, items: list[ChunkInput]) -> list[Change | None]:
        return [None if item.step == 0 else Change(EXAMPLE["distance_by_step"][item.step], 1.0) for item in items]

    def finish(self, chunk: int) -> None:
        return None

    def patch_embedding(self, item: ChunkInput) -> Tensor:
        return torch.zeros(1, EXAMPLE["frames"] * EXAMPLE["height"] * EXAMPLE["width"], EVENTS["h"].shape[-1])


def test_the_reference_policy_decides_as_published_branch_by_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole recorded sequence, chunks staggered, both branches at once: every mask of every event."""
    policy = ReferenceMotion(
        threshold=EXAMPLE["threshold"],
        warmup_steps=EXAMPLE["warmup"] + 1,
        floor=EXAMPLE["floor"],
        uniform_updates=EXAMPLE["phase1_updates"],
        vote=EXAMPLE["vote"],
        minimum=EXAMPLE["min_ratio"],
        always_last=False,
    )
    monkeypatch.setattr("flowcache_core.reuse.motion_reference.relative_change", lambda change, of: change.difference)
    state = policy.begin(shifted(EXAMPLE["steps"], 1.0), Given())  # type: ignore[arg-type]
    state.distance = state.model = Given()  # type: ignore[attr-defined]
    latents = torch.zeros(1, 16, EXAMPLE["frames"], 2 * EXAMPLE["height"], 2 * EXAMPLE["width"])
    frames, width = EXAMPLE["frames"], EVENTS["h"].shape[-1]
    events: dict[tuple[int, int], dict[int, int]] = {}
    for row in range(len(EVENTS["step"])):
        place = (int(EVENTS["group"][row]), int(EVENTS["step"][row]))
        events.setdefault(place, {})[int(EVENTS["branch"][row])] = row
    ticks: dict[int, list[tuple[int, int]]] = {}
    for chunk, step in events:
        ticks.setdefault(step + chunk * EXAMPLE["stagger"], []).append((chunk, step))
    seen, apart = set(), 0
    for tick in sorted(ticks):
        items = [
            ChunkInput(Chunk(chunk, chunk * frames, frames), step, 0.5, 500.0, latents)
            for chunk, step in sorted(ticks[tick])
        ]
        for item, decision in zip(items, state.decide(items), strict=True):
            rows = events[item.chunk.index, item.step]
            each = decision.rows.each if decision.rows is not None else [None] * len(rows)
            for branch, row in rows.items():
                wanted = EVENTS["computed"][row].bool()
                own = each[branch] if decision.action == "part" else None
                found = own.mask(torch.device("cpu")).flatten() if own is not None else torch.zeros_like(wanted)
                found = torch.ones_like(wanted) if decision.action == "compute" else found
                assert torch.equal(found, wanted), (item.chunk.index, item.step, branch)
                seen.add(["reuse", "part", "compute"][int(EVENTS["action"][row])])
            apart += not torch.equal(*(EVENTS["computed"][row] for row in rows.values()))
            hidden = [int(EVENTS["h_index"][row]) for row in rows.values()]
            known = all(index >= 0 for index in hidden)
            residual = torch.stack([EVENTS["h"][index].view(-1, width) for index in hidden]) if known else None
            state.behind(item, Computed(item, torch.zeros(2, 1, 1), latents, residual))
    assert {"reuse", "part", "compute"} <= seen and apart > 0
