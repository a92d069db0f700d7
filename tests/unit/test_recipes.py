"""One part of each kind, from outside the package, used without being named in it (docs/architecture.md)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from dummy import DummyDenoiser
from torch import Tensor

from flowcache_core import presets
from flowcache_core.bundled import load_bundled
from flowcache_core.commands import cost, demo, schedule
from flowcache_core.cost import ModelShape
from flowcache_core.denoiser import ChunkInput, Denoiser, ModelView
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.errors import SettingError
from flowcache_core.families import FAMILIES, Family
from flowcache_core.kv import COMPRESSORS
from flowcache_core.kv.compressor import Compressor, Region
from flowcache_core.kv.settings import KVSettings
from flowcache_core.noise import NoiseSource
from flowcache_core.options import option, options_of
from flowcache_core.plan import PLANS, PlanSettings, blockwise, staggered
from flowcache_core.plan.base import Plan, offset_ticks, split_frames
from flowcache_core.report.events import CacheCompressed, Event, StepTaken
from flowcache_core.reuse import DISTANCES, POLICIES, QUANTITIES
from flowcache_core.reuse.base import Decision, PolicyState, ReusePolicy
from flowcache_core.reuse.quantity import Computed, Quantity
from flowcache_core.schedule import Schedule, shifted
from flowcache_core.solvers import SOLVERS
from flowcache_core.solvers.base import Solver, SolverState

STEPS = 8


@dataclass(frozen=True)
class OddSteps(ReusePolicy):
    """Computes every step whose number leaves no rest by ``every``."""

    name: ClassVar[str] = "odd-steps"

    every: int = option(3, "Only for odd-steps: compute each of so many steps.", minimum=1, maximum=99)

    @property
    def content_free(self) -> bool:
        return True

    def begin(self, schedule: Schedule, denoiser: ModelView) -> PolicyState:
        return OddStepsState(schedule, self)


@dataclass
class OddStepsState(PolicyState):
    policy: OddSteps

    def decide(self, items: Sequence[ChunkInput]) -> list[Decision]:
        return [self.settle(item.chunk.index, self.one(item)) for item in items]

    def one(self, item: ChunkInput) -> Decision:
        forced = self.policy.forced(item.step, self.schedule.steps, self.progress(item.chunk.index))
        if forced:
            return Decision("compute", forced)
        return Decision("reuse" if item.step % self.policy.every else "compute", "schedule")


@dataclass(frozen=True)
class Halved(Quantity):
    name: ClassVar[str] = "halved"

    def velocity(self, history: Sequence[Computed], item: ChunkInput, sigma_next: float, denoiser: Denoiser) -> Tensor:
        return history[-1].velocity / 2


@dataclass(frozen=True)
class Oldest(Compressor):
    name: ClassVar[str] = "oldest"

    def score(self, region: Region) -> Tensor:
        return -region.positions.float()


@dataclass(frozen=True)
class Pairs(PlanSettings):
    """Two chunks at a time: the second one starts a tick after the first."""

    name: ClassVar[str] = "pairs"
    title: ClassVar[str] = "pairs"
    solver: ClassVar[str] = "euler"
    clean_pass: ClassVar[bool] = False

    def plan(self, frames: int, steps: int, prefix_frames: int = 0) -> Plan:
        chunks, prefix = split_frames(frames, self.chunk_frames, prefix_frames)
        return Plan("pairs", chunks, steps, offset_ticks(chunks, prefix, steps, max(1, steps // 2)), prefix)


@dataclass(frozen=True)
class InPlace(Solver):
    """Euler by a state that adds to a tensor it keeps."""

    name: ClassVar[str] = "in-place"

    def begin(self, schedule: Schedule, chunk: int, noise: NoiseSource) -> SolverState:
        return InPlaceState(schedule, chunk, noise)


class InPlaceState(SolverState):
    def __init__(self, schedule: Schedule, chunk: int, noise: NoiseSource) -> None:
        super().__init__(schedule, chunk, noise)
        self.moved: list[Tensor] = []

    def advance(self, x: Tensor, velocity: Tensor, step: int) -> Tensor:
        sigma, sigma_next = self.schedule.sigmas[step : step + 2]
        change = velocity * (sigma_next - sigma)
        if self.moved:
            self.moved[0] += change
        else:
            self.moved.append(x + change)
        return self.moved[0].clone()


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry, part in ((POLICIES, OddSteps), (QUANTITIES, Halved), (COMPRESSORS, Oldest), (PLANS, Pairs)):
        monkeypatch.setitem(registry, part.name, part)
    monkeypatch.setitem(SOLVERS, InPlace.name, InPlace)


def run(plan: Plan, **settings: object) -> tuple[Tensor, list[Event]]:
    events: list[Event] = []
    noise = torch.randn(1, 1, plan.frames, 2, 2, generator=torch.Generator().manual_seed(0))
    denoiser = DummyDenoiser(rule=lambda item: item.latents * item.sigma)
    made = EngineSettings(plan, shifted(plan.steps, 3.0), **settings)
    return generate(denoiser, made, noise, observe=events.append), events


@pytest.mark.parametrize("plan", [blockwise(6, 2, STEPS), staggered(6, 2, STEPS, 2)], ids=lambda plan: plan.name)
def test_policy_and_quantity_run(plan: Plan) -> None:
    latents, events = run(plan, policy=OddSteps(warmup_steps=1), quantity=Halved())
    steps = [event for event in events if isinstance(event, StepTaken) and event.chunk == 1]
    assert "".join(step.action[0] for step in steps) == "crrcrrcc" and bool(latents.isfinite().all())


def test_policy_in_the_cost_command() -> None:
    def pflops(*more: str) -> float:
        return cost.evaluate(
            cost.parser().parse_args(["--model", "skyreels-v2-1.3b-540p", "--preset", "causal", *more])
        )["pflops"]

    chosen = cost.evaluate(
        cost.parser().parse_args(
            ["--model", "skyreels-v2-1.3b-540p", "--preset", "causal", "--policy", '{"name": "odd-steps", "every": 5}']
        )
    )
    assert chosen["computed_steps"] == chosen["total_steps"] * 15 // 50  # 0-4, every fifth, the last
    assert chosen["pflops"] < pflops("--policy", "odd-steps") < pflops()


def test_policy_in_the_schedule_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "skyreels-v2-1.3b-540p", "--policy", '{"name": "odd-steps", "every": 10}', "--json"]
    assert schedule.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["computed"] == [0, 1, 2, 3, 4, 10, 20, 30, 40, 49]


def test_policy_compressor_and_plan_in_the_demo() -> None:
    options = demo.parser().parse_args(
        ["--policy", "odd-steps", "--compressor", "oldest", "--plan", "pairs", "--chunks", "4", "--kv-budget", "1"]
    )
    made = demo.configure(options, load_bundled("mini"))
    assert made.flowcache.policy == OddSteps() and made.flowcache.kv.compressor == Oldest()
    assert made.flowcache.plan.name == "pairs" and made.flowcache.plan.max_active == 2


def test_compressor_runs() -> None:
    _, events = run(blockwise(10, 2, 4), kv=KVSettings(2.0, Oldest()))
    assert sum(isinstance(event, CacheCompressed) for event in events) == 2


def test_plan_runs() -> None:
    latents, _ = run(Pairs(2).plan(6, 4))
    assert bool(latents.isfinite().all())


@pytest.mark.parametrize("policy", [None, OddSteps(warmup_steps=1)], ids=["no reuse", "reuse"])
def test_a_solver_that_writes_in_place_is_euler(policy: ReusePolicy | None) -> None:
    """With a corrected gap too: what the engine goes back to is a snapshot of its own."""
    chosen = {} if policy is None else {"policy": policy, "quantity": QUANTITIES["forecast"]()}
    plan = blockwise(6, 2, STEPS)
    euler, _ = run(plan, **chosen)
    own, _ = run(plan, solver=InPlace(), **chosen)
    assert torch.allclose(own, euler, atol=1e-6)


def test_a_snapshot_stays_what_it_was() -> None:
    state = InPlace().begin(shifted(4, 3.0), 0, lambda *place: torch.zeros(1))
    x = state.step(torch.ones(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1), 0)
    kept = state.snapshot()
    state.step(x, torch.ones_like(x), 1)
    assert isinstance(kept, InPlaceState) and torch.equal(kept.moved[0], x) and kept.next_step == 1
    again = kept.step(x, torch.ones_like(x), 1)
    assert torch.equal(again, state.moved[0])


@pytest.mark.parametrize("registry", [POLICIES, DISTANCES, QUANTITIES, COMPRESSORS, PLANS], ids=len)
def test_every_option_has_a_text_and_its_default_is_within_its_limits(registry: dict[str, type]) -> None:
    for name, part in registry.items():
        for label, (field, declared) in options_of(part).items():
            assert declared.text.strip(), (name, label)
            value = field.default
            if declared.minimum is not None and value is not None and not isinstance(value, tuple):
                assert declared.minimum <= value <= declared.maximum, (name, label)
            if declared.choices:
                assert value in declared.choices, (name, label)


def test_an_unknown_policy_is_refused_with_what_there_is() -> None:
    with pytest.raises(SettingError, match="policy: got 'no such'.*odd-steps"):
        cost.evaluate(cost.parser().parse_args(["--model", "magi-1-4.5b", "--policy", "no such"]))


# -- a family: one row, one file of presets, a denoiser with the protocol --------------------------------------------


@dataclass(frozen=True)
class SquareShape(ModelShape):
    """A forward costs the square of its width for every token."""

    width: int

    @property
    def kv_bytes_per_token(self) -> int:
        return 4 * self.width

    def forward(self, tokens: int, context: int) -> float:
        return float(tokens * self.width**2) + self.attention(tokens, context)

    def attention(self, tokens: int, context: int) -> float:
        return float(tokens * context)


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A model "square-1" of the family "square", in blocks of two frames."""
    run = {"plan": "blockwise", "frames": 8, "chunk_frames": 2, "steps": 10, "shift": 3.0}
    content = {
        "schema": 1,
        "shape": {"kind": "square", "width": 3},
        "run": {**run, "tokens_per_frame": 5, "branches": 1},
        "presets": {"vanilla": {"text": "All.", "policy": {"name": "never"}}},
    }
    (tmp_path / "square-1.json").write_text(json.dumps(content))
    monkeypatch.setattr(presets, "FOLDER", tmp_path)
    row = Family(
        shape=lambda fields, steps, nearly_clean: SquareShape(**fields),
        schedule=shifted,
        requires=frozenset({"steps", "shift"}),
        clean_pass=False,
        load=lambda path: None,
        view=lambda model: DummyDenoiser(),
    )
    monkeypatch.setitem(FAMILIES, "square", row)
    return "square-1"


def test_a_family_is_counted(family: str) -> None:
    counted = cost.evaluate(cost.parser().parse_args(["--model", family]))
    assert (counted["computed_steps"], counted["total_steps"]) == (40, 40)
    contexts = sum(10 * n * 10 * 10 for n in (1, 2, 3, 4))  # 10 steps of 10 tokens over 10 n tokens of context
    assert counted["pflops"] * 1e15 == pytest.approx(4 * 10 * 10 * 9 + contexts)


def test_a_family_has_schedules(family: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert schedule.main(["--model", family, "--policy", '{"name": "odd-steps", "every": 4}', "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["computed"] == [0, 1, 2, 3, 4, 8, 9]
