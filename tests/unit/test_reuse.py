"""Reuse policies on latents whose distances are known by arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from dummy import DummyDenoiser
from hypothesis import given
from hypothesis import strategies as st

from flowcache_core.denoiser import ChunkInput
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.errors import SettingError
from flowcache_core.plan import blockwise, staggered
from flowcache_core.plan.base import Chunk
from flowcache_core.report.events import Event, StepTaken
from flowcache_core.reuse import DISTANCES, POLICIES, QUANTITIES
from flowcache_core.reuse.base import ReusePolicy
from flowcache_core.reuse.build import build_policy, build_quantity
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.distance import Change, LatentDistance, PatchDistance, TimeDistance
from flowcache_core.reuse.easycache import EasyCache
from flowcache_core.reuse.forecast import Forecast, Offset, Taylor
from flowcache_core.reuse.front_loaded import FrontLoaded
from flowcache_core.reuse.interval import Interval
from flowcache_core.reuse.magcache import MagCache
from flowcache_core.reuse.never import Never
from flowcache_core.reuse.published import Published
from flowcache_core.reuse.quantity import Computed, Velocity
from flowcache_core.reuse.schedule import StaticSchedule, in_step, spread
from flowcache_core.reuse.teacache import TeaCache
from flowcache_core.schedule import shifted
from flowcache_core.solvers.euler import Euler
from flowcache_core.solvers.unipc import UniPC

SCHEDULE = shifted(10, 1.0)


def item(chunk: int, step: int, level: float) -> ChunkInput:
    latents = torch.full((1, 1, 2, 2, 2), level)
    return ChunkInput(Chunk(chunk, 2 * chunk, 2), step, SCHEDULE.sigmas[step], SCHEDULE.timesteps[step], latents)


def actions(policy: ReusePolicy, levels: list[list[float | None]]) -> list[list[str]]:
    """Feed ``levels[tick][chunk]`` (None = chunk not active) and return each tick's decisions as c / r per chunk."""
    state = policy.begin(SCHEDULE, DummyDenoiser())
    steps = [0] * len(levels[0])
    result = []
    for row in levels:
        items = [item(chunk, steps[chunk], level) for chunk, level in enumerate(row) if level is not None]
        for one in items:
            steps[one.chunk.index] += 1
        result.append([decision.action[0] for decision in state.decide(items)])
    return result


def test_every_chunk_accumulates_on_its_own():
    # chunk 0 moves by 10 % a step, chunk 1 by 30 %: with 0.25 the first reuses twice, the second never.
    policy = Chunkwise(warmup_steps=1, threshold=0.25)
    levels = [[1.1**k, 1.3**k] for k in range(8)]
    assert ["".join(row) for row in actions(policy, levels)] == ["cc", "rc", "rc", "cc", "rc", "rc", "cc", "rc"]


def test_one_decision_for_all_active_chunks_is_teacache():
    # pooled: sum of changes over sum of magnitudes; both chunks always do the same.
    policy = TeaCache(warmup_steps=1, threshold=0.25, distance=LatentDistance())
    levels = [[1.1**k, 1.3**k] for k in range(5)]
    assert ["".join(row) for row in actions(policy, levels)] == ["cc", "rr", "cc", "rr", "cc"]
    pooled = (0.1 + 0.3) / 2
    state = policy.begin(SCHEDULE, DummyDenoiser())
    state.decide([item(0, 0, 1.0), item(1, 0, 1.0)])
    first, second = state.decide([item(0, 1, 1.1), item(1, 1, 1.3)])
    assert first == second and first.distance == pytest.approx(pooled, rel=1e-5)


def test_teacache_counts_from_a_tick_in_which_all_chunks_were_forced():
    """10 % a step in both chunks: two reuses stay within 0.25, the cap computes the third step and all begins anew."""
    policy = TeaCache(warmup_steps=1, threshold=0.25, distance=LatentDistance(), max_reuses=2)
    levels = [[1.1**k, 1.1**k] for k in range(10)]
    assert actions(policy, levels) == [[a, a] for a in "crrcrrcrrc"]


CURVE = (1.0, 0.97, 0.96, 0.95, 0.97, 0.96, 0.97, 0.97, 0.96, 0.97)


@pytest.mark.parametrize(
    "policy",
    [
        Chunkwise(threshold=0.25, warmup_steps=2),
        TeaCache(threshold=0.25, warmup_steps=2, distance=LatentDistance()),
        TeaCache(threshold=0.5, warmup_steps=1, distance=TimeDistance(), always_last=False),
        EasyCache(threshold=0.25, warmup_steps=2),
        MagCache(threshold=0.2, warmup_steps=1, curve=CURVE),
        Interval(interval=3, warmup_steps=1, always_last=False),
        Interval(interval=2, growth=0.5, warmup_steps=1),
        FrontLoaded(first_share=0.5, share=0.5, lead=0.0),
        Published(),
        StaticSchedule(computed=(0, 1, 4)),
        Never(),
    ],
    ids=lambda policy: policy.name,
)
@pytest.mark.parametrize("plan", ["blockwise", "given chunks"])
def test_nothing_of_a_chunk_is_left_for_the_next_one_or_the_next_run(policy, plan):
    """Chunks that begin with the same noise are computed, reused and accounted for alike."""
    made = blockwise(8, 2, 10, prefix_frames=0 if plan == "blockwise" else 2)
    settings = EngineSettings(made, SCHEDULE, policy=policy)
    noise = torch.randn(1, 1, 2, 2, 2, generator=torch.Generator().manual_seed(1)).repeat(1, 1, 4, 1, 1)
    prefix = noise[:, :, : made.prefix_frames] if made.prefix_frames else None
    denoiser, tables = DummyDenoiser(lambda one: one.latents * (0.5 + one.sigma)), []
    for _ in range(2):
        events: list[Event] = []
        generate(denoiser, settings, noise, prefix=prefix, observe=events.append)
        taken = [event for event in events if isinstance(event, StepTaken)]
        for chunk in range(made.prefix_chunks, 4):
            own = [step for step in taken if step.chunk == chunk]
            tables.append([(one.action, one.reason, one.distance, one.accumulated) for one in own])
    assert policy.name == "never" or {row[0] for row in tables[0]} == {"compute", "reuse"}
    assert all(table == tables[0] for table in tables[1:])


def test_the_very_last_tick_is_computed_where_it_is_asked_for():
    policy = Interval(interval=20, warmup_steps=1, always_last=False)
    noise = torch.randn(1, 1, 6, 2, 2)

    def last_steps(plan: str, **fields) -> list[tuple[str, str]]:
        events: list[Event] = []
        made = blockwise(6, 2, 10) if plan == "blockwise" else staggered(6, 2, 10, 0)
        settings = EngineSettings(made, SCHEDULE, policy=replace(policy, **fields))
        generate(DummyDenoiser(), settings, noise, observe=events.append)
        return [(e.action, e.reason) for e in events if isinstance(e, StepTaken) and e.step == 9]

    reused, computed = ("reuse", "interval"), ("compute", "last step")
    assert last_steps("blockwise") == [reused] * 3
    assert last_steps("blockwise", last_tick=True) == [reused, reused, computed]
    assert last_steps("staggered", last_tick=True) == [computed] * 3
    assert last_steps("blockwise", always_last=True) == [computed] * 3


def test_teacache_computes_a_new_chunk_alone():
    policy = TeaCache(warmup_steps=1, threshold=10.0, distance=LatentDistance())
    assert actions(policy, [[1.0, None], [1.1, None], [1.2, 1.0], [1.3, 1.1]]) == [["c"], ["r"], ["r", "c"], ["r", "r"]]


def test_what_a_forced_chunk_moves_is_no_part_of_the_common_distance():
    """Chunk 1 warms up and changes tenfold; chunk 0 changes by a hundredth, and that alone counts."""
    policy = TeaCache(warmup_steps=2, threshold=0.5, distance=LatentDistance())
    state = policy.begin(SCHEDULE, DummyDenoiser())
    for step in (0, 1):
        state.decide([item(0, step, 1.0)])
    state.decide([item(0, 2, 1.01), item(1, 0, 1.0)])
    ours, forced = state.decide([item(0, 3, 1.0201), item(1, 1, 10.0)])
    assert ours.reuses and ours.distance == pytest.approx(0.01, abs=1e-6)
    assert ours.accumulated == pytest.approx(0.02, abs=1e-6)
    assert (forced.reason, forced.distance) == ("warm-up", None)


def test_the_previous_step_is_the_reference_even_when_it_was_reused():
    state = Chunkwise(warmup_steps=1, threshold=1.0).begin(SCHEDULE, DummyDenoiser())
    state.decide([item(0, 0, 1.0)])
    first = state.decide([item(0, 1, 2.0)])[0]
    second = state.decide([item(0, 2, 2.5)])[0]
    assert first.reuses and first.distance == pytest.approx(1.0)
    assert not second.reuses and second.distance == pytest.approx(0.25) and second.accumulated == pytest.approx(1.25)


@pytest.mark.parametrize(("inclusive", "expected"), [(True, "r"), (False, "c")])
def test_threshold_met_exactly(inclusive, expected):
    policy = Chunkwise(warmup_steps=1, threshold=0.5, inclusive=inclusive, distance=LatentDistance())
    state = policy.begin(SCHEDULE, DummyDenoiser())
    state.distance.measure = lambda items: [Change(0.5 * (1 + 1e-8), 1.0)]
    state.decide([item(0, 0, 1.0)])
    assert state.decide([item(0, 1, 1.0)])[0].action[0] == expected


def test_warm_up_last_step_and_cap_are_always_computed():
    policy = Chunkwise(warmup_steps=3, threshold=100.0, max_reuses=2)
    rows = actions(policy, [[1.0 + 0.01 * k] for k in range(10)])
    assert "".join(row[0] for row in rows) == "cccrrcrrcc"
    state = policy.begin(SCHEDULE, DummyDenoiser())
    reasons = [state.decide([item(0, k, 1.0)])[0].reason for k in range(10)]
    assert reasons == ["first step", "warm-up", "warm-up", *(["within threshold"] * 2 + ["cap"]) * 2, "last step"]
    loose = Chunkwise(warmup_steps=1, threshold=100.0, always_last=False)
    assert "".join(row[0] for row in actions(loose, [[1.0]] * 10)) == "crrrrrrrrr"


def test_a_step_that_is_listed_twice_counts_once():
    table = StaticSchedule(computed=(5, 0, 5), first=(3, 0, 0))
    assert table == StaticSchedule(computed=(0, 5), first=(0, 3))


def test_static_schedule_computes_its_own_steps_only():
    rows = actions(StaticSchedule(computed=(0, 1, 5)), [[1.0]] * 10)
    assert "".join(row[0] for row in rows) == "ccrrrcrrrc"
    with pytest.raises(SettingError, match="0..9"):
        StaticSchedule(computed=(0, 10)).begin(SCHEDULE, DummyDenoiser())


@given(steps=st.integers(4, 80), warmup=st.integers(1, 3), data=st.data())
def test_spread_has_exactly_the_count_asked_for(steps, warmup, data):
    count = data.draw(st.integers(warmup + 1, steps))
    table = spread(count, steps, warmup)
    assert len(set(table)) == count and table == tuple(sorted(table))
    assert table[:warmup] == tuple(range(warmup)) and table[-1] == steps - 1
    gaps = [b - a for a, b in zip(table[warmup:], table[warmup + 1 :], strict=False)]
    assert not gaps or max(gaps) - min(gaps) <= 1


# -- distances -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [LatentDistance(), PatchDistance()])
def test_relative_l1_of_content(distance):
    state = distance.begin(SCHEDULE, DummyDenoiser())
    assert state.measure([item(0, 0, 2.0)]) == [None]
    changes = state.measure([item(0, 1, -1.0), item(1, 0, 1.0)])
    assert changes[1] is None
    assert distance.value([changes[0]]) == pytest.approx(1.5, rel=1e-6)


def test_time_distance_is_a_table_through_the_polynomial():
    distance = TimeDistance((2.0, 0.0, -0.001))
    state = distance.begin(SCHEDULE, DummyDenoiser())
    relative = 100.0 / 900.0
    (change,) = state.measure([item(0, 2, 5.0)])
    assert distance.value([change]) == pytest.approx(2 * relative**2 - 0.001, rel=1e-4)


def test_a_polynomial_below_zero_lets_the_accumulator_fall():
    policy = Chunkwise(warmup_steps=1, threshold=0.1, distance=TimeDistance((0.0, -0.05)))
    state = policy.begin(SCHEDULE, DummyDenoiser())
    decisions = [state.decide([item(0, k, 1.0)])[0] for k in range(4)]
    assert [d.accumulated for d in decisions[1:]] == pytest.approx([-0.05, -0.1, -0.15])


def test_at_most_one_sync_per_tick(monkeypatch):
    """Law 5: all chunks' distances come to the host in one transfer; the time table needs none."""
    transfers = []
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: transfers.append(1) or original(self))
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("a sync per chunk"))
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: pytest.fail("a sync per chunk"))
    for policy, expected in [
        (Chunkwise(), 9),
        (TeaCache(distance=PatchDistance()), 9),
        (Chunkwise(distance=TimeDistance()), 0),
    ]:
        state = policy.begin(SCHEDULE, DummyDenoiser())
        transfers.clear()
        for step in range(10):
            state.decide([item(chunk, step, 1.0 + step) for chunk in range(4)])
        assert len(transfers) == expected


# -- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "0.1", True])
@pytest.mark.parametrize("policy", [Chunkwise, TeaCache])
def test_bad_thresholds_are_refused(policy, value):
    with pytest.raises(SettingError, match="threshold"):
        policy(threshold=value)


@pytest.mark.parametrize("field", ["warmup_steps", "max_reuses"])
@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_bad_counts_are_refused(field, value):
    with pytest.raises(SettingError, match=field):
        Chunkwise(**{field: value})


def test_every_registered_part_is_built_by_its_name():
    assert {name: type(build_policy({"name": name})) for name in POLICIES} == POLICIES
    assert {name: type(build_quantity(name)) for name in QUANTITIES} == QUANTITIES
    for name, kind in DISTANCES.items():
        assert isinstance(build_policy({"name": "chunkwise", "distance": name}).distance, kind)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "nope"}, "policy: got 'nope', accepted: chunkwise"),
        ({"name": "chunkwise", "thresh": 1}, "policy chunkwise: got 'thresh', accepted: always_last"),
        ({"name": "chunkwise", "distance": "l2"}, "distance: got 'l2', accepted: latent"),
    ],
)
def test_unknown_names_list_what_there_is(settings, message):
    with pytest.raises(SettingError, match=message):
        build_policy(settings)


# -- forecasts and rivals --------------------------------------------------------------------------------------------


def run_rule(rule, policy: ReusePolicy, quantity, steps: int = 20):
    plan = blockwise(4, 2, steps)
    settings = EngineSettings(plan, shifted(steps, 3.0), policy=policy, quantity=quantity)
    noise = torch.randn(1, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return generate(DummyDenoiser(rule), settings, noise)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_forecast_is_exact_on_velocities_of_its_own_order(order):
    def rule(item):
        return sum((k + 1.5) * item.sigma**k for k in range(order + 1)) * torch.ones_like(item.latents)

    sparse = StaticSchedule(computed=(0, 1, 2, 3, 7, 12), always_last=False)
    base = run_rule(rule, Never(), Velocity())
    assert torch.allclose(run_rule(rule, sparse, Forecast(order=order, correction=0)), base, atol=1e-9)
    assert not torch.allclose(run_rule(rule, sparse, Velocity()), base, atol=1e-2)


def test_damped_forecast_lies_between_reuse_and_forecast():
    history = [Computed(item(0, k, 1.0), torch.tensor([[float(v)]]), torch.zeros(1)) for k, v in ((2, 1.0), (3, 3.0))]
    at = item(0, 5, 1.0)
    full, half, none = (float(Forecast(damping=d).velocity(history, at, 0.0, DummyDenoiser())) for d in (1.0, 0.5, 0.0))
    assert (full, half, none) == pytest.approx((7.0, 5.0, 3.0), rel=1e-5)


def test_taylor_follows_the_published_recursion():
    values = {1: 1.0, 3: 5.0, 4: 10.0}
    history = [Computed(item(0, k, 1.0), torch.tensor([[v]]), torch.zeros(1)) for k, v in values.items()]
    slope = 10.0 - 5.0
    slope_before = (5.0 - 1.0) / 2
    curve = slope - slope_before
    expected = 10.0 + slope * 2 + curve * 2**2 / 2
    assert float(Taylor(order=2).velocity(history, item(0, 6, 1.0), 0.0, DummyDenoiser())) == pytest.approx(expected)


def test_offset_adds_what_the_latents_moved():
    history = [Computed(item(0, 2, 1.0), torch.full((1, 1, 1, 2, 2, 2), 4.0), torch.zeros(1))]
    out = Offset().velocity(history, item(0, 3, 1.5), 0.0, DummyDenoiser())
    assert torch.equal(out, torch.full_like(out, 4.5))


def test_interval_computes_every_third_step():
    assert "".join(r[0] for r in actions(Interval(warmup_steps=2, interval=3), [[1.0]] * 10)) == "ccrrcrrcrc"


def test_easycache_predicts_from_the_last_two_computed_steps():
    state = EasyCache(warmup_steps=2, threshold=0.3).begin(SCHEDULE, DummyDenoiser())
    for step, (level, velocity) in enumerate([(1.0, 4.0), (2.0, 5.0)]):
        state.decide([item(0, step, level)])
        state.observe(item(0, step, level), torch.full((1, 1, 1, 2, 2, 2), velocity))
    decision = state.decide([item(0, 2, 3.0)])[0]
    ratio, moved, last = 1.0, 1.0, 5.0
    assert decision.reuses and decision.distance == pytest.approx(ratio * moved / last, rel=1e-5)
    assert not state.decide([item(0, 3, 4.0)])[0].reuses


def test_magcache_sums_the_drift_of_the_product():
    curve = (1.0, 1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9)
    policy = MagCache(warmup_steps=2, threshold=0.3, curve=curve)
    # |1 - .9| = .1, + |1 - .81| = .29 < .3, then .29 + .271 > .3: compute
    assert "".join(r[0] for r in actions(policy, [[1.0]] * 10)) == "ccrrcrrcrc"
    with pytest.raises(SettingError, match="curve"):
        MagCache(curve=(1.0,)).begin(SCHEDULE, DummyDenoiser())


# -- a gap is gone through again once the step after it is known ------------------------------------------------------


def sine_of_sigma(item):
    return torch.full_like(item.latents, math.sin(3 * item.sigma))


def plan_of(name, frames=6):
    return staggered(frames, 2, 12, 4) if name == "staggered" else blockwise(frames, 2, 12)


def corrected_run(correction, solver=None, plan="blockwise", **changes):
    settings = EngineSettings(plan_of(plan), shifted(12, 3.0), solver=solver or Euler())
    noise = torch.randn(1, 1, 6, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    full = generate(DummyDenoiser(sine_of_sigma), settings, noise)
    policy = StaticSchedule(computed=(0, 3, 6, 8, 11))
    reusing = replace(settings, policy=policy, quantity=Forecast(order=1, correction=correction), **changes)
    return (generate(DummyDenoiser(sine_of_sigma), reusing, noise) - full).abs().max().item()


@pytest.mark.parametrize("solver", [Euler(), UniPC()])
@pytest.mark.parametrize("plan", ["blockwise", "staggered"])
def test_correction_brings_the_latents_nearer(solver, plan):
    errors = [corrected_run(correction, solver, plan) for correction in (0, 1, 2)]
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[1]


@pytest.mark.parametrize("solver", [Euler(), UniPC()])
@pytest.mark.parametrize("degree", [2, 3])
def test_correction_is_exact_on_velocities_of_its_own_order(solver, degree):
    def polynomial(item):
        return torch.full_like(item.latents, item.sigma**degree)

    settings = EngineSettings(plan_of("blockwise", 2), shifted(12, 3.0), solver=solver)
    noise = torch.zeros(1, 1, 2, 2, 2, dtype=torch.float64)
    full = generate(DummyDenoiser(polynomial), settings, noise)
    policy = StaticSchedule(computed=(*range(degree), degree + 3, 9, 11))  # enough steps behind the first gap
    errors = []
    for correction in (degree - 1, degree):
        reusing = replace(settings, policy=policy, quantity=Forecast(order=1, correction=correction))
        errors.append((generate(DummyDenoiser(polynomial), reusing, noise) - full).abs().max().item())
    assert errors[0] > 1e-4
    assert errors[1] < 1e-9


def test_without_a_reused_step_correction_changes_no_bit():
    settings = EngineSettings(plan_of("blockwise"), shifted(12, 3.0), quantity=Forecast(correction=3))
    noise = torch.randn(1, 1, 6, 2, 2, generator=torch.Generator().manual_seed(1))
    corrected = generate(DummyDenoiser(sine_of_sigma), settings, noise)
    assert torch.equal(corrected, generate(DummyDenoiser(sine_of_sigma), replace(settings, quantity=Velocity()), noise))


def test_correction_works_with_what_is_kept_on_another_device_and_on_whole_windows():
    assert corrected_run(2, reuse_device="cpu") == corrected_run(2)

    settings = EngineSettings(plan_of("staggered"), shifted(12, 3.0), attention="bidirectional")
    noise = torch.zeros(1, 1, 6, 2, 2)
    policy = StaticSchedule(computed=(0, 1, 2, 4, 6, 8, 10, 11))
    full = generate(DummyDenoiser(), settings, noise)
    errors = []
    for correction in (0, 2):
        quantity = Forecast(order=1, correction=correction)
        out = generate(DummyDenoiser(), replace(settings, policy=policy, quantity=quantity), noise)
        errors.append((out - full).abs().max().item())
    assert errors[1] < 1e-3 * full.abs().max()  # the dummy's window velocity is its timestep: linear in sigma


@pytest.mark.parametrize("value", [-1, 5, 1.5])
def test_correction_out_of_range_is_refused(value):
    with pytest.raises(SettingError, match="correction"):
        Forecast(correction=value)


# -- chunks that are in work side by side -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "steps", "offset", "expected"),
    [
        (25, 50, 12, (*range(0, 50, 2), 49)),
        (18, 50, 12, (*range(0, 50, 3), 49)),
        (10, 50, 12, (*range(0, 50, 6), 49)),
        (8, 50, 12, None),  # only every twelfth tick would be left
        (19, 50, 5, None),  # 21 steps are too many, and the next that recur are 11
        (25, 50, 5, tuple(s for s in range(50) if s % 5 in (0, 2)) + (49,)),
        (6, 12, 12, None),  # one chunk after the other
        (6, 12, 0, None),  # all at once: every table is in step
    ],
)
def test_tables_in_step_recur_with_the_offset(count, steps, offset, expected):
    assert in_step(count, steps, offset) == expected


def test_chunks_side_by_side_are_computed_at_the_same_ticks():
    computed = (0, 1, 3, 6, 9, 11)
    denoiser = DummyDenoiser()
    plan = staggered(8, 2, 12, 4)
    policy = StaticSchedule(computed=computed, together=True)
    generate(denoiser, EngineSettings(plan, shifted(12, 3.0), policy=policy), torch.zeros(1, 1, 8, 2, 2))
    taken = {chunk: [step for c, step in denoiser.calls if c == chunk] for chunk in range(4)}
    assert taken[1] == taken[2] == taken[3] == [0, 2, 4, 6, 8, 10, 11]
    assert taken[0] == [0, 1, 3, 4, 6, 8, 10, 11]  # its first four steps are alone and follow the table
    alone = DummyDenoiser()
    settings = EngineSettings(plan_of("blockwise"), shifted(12, 3.0), policy=policy)
    generate(alone, settings, torch.zeros(1, 1, 6, 2, 2))
    assert [step for c, step in alone.calls if c == 1] == list(computed)


def test_the_offset_is_that_of_neighbours_however_many_are_in_work():
    """Three chunks at once, four ticks apart: the oldest and the newest are eight apart, which is not meant."""
    denoiser, plan = DummyDenoiser(), staggered(10, 2, 12, 4)
    policy = StaticSchedule(computed=(0, 3, 7, 11), together=True)
    generate(denoiser, EngineSettings(plan, shifted(12, 3.0), policy=policy), torch.zeros(1, 1, 10, 2, 2))
    taken = {chunk: [step for c, step in denoiser.calls if c == chunk] for chunk in range(5)}
    assert in_step(4, 12, 4) == (0, 4, 8, 11) != in_step(4, 12, 8)
    assert taken[1] == taken[2] == taken[3] == [0, 4, 8, 11]


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (blockwise(8, 2, 12), {0: [0, 1, 2, 4, 6, 8, 11], 1: [0, 5, 11], 3: [0, 5, 11]}),
        (blockwise(8, 2, 12, 2), {1: [0, 5, 11], 2: [0, 5, 11]}),  # chunk 0 is given
        # in step where several are in work: every third tick here; the first chunk has its own list all the same
        (staggered(8, 2, 12, 3), {0: [0, 1, 2, 4, 6, 8, 11], 1: [0, 3, 6, 9, 11], 3: [0, 3, 6, 9, 11]}),
    ],
)
def test_the_chunk_that_begins_a_video_has_a_list_of_its_own(plan, expected):
    computed = (0, 5, 11) if plan.name == "blockwise" else (0, 3, 7, 11)
    policy = StaticSchedule(computed=computed, first=(0, 1, 2, 4, 6, 8, 11), together=True)
    denoiser, prefix = DummyDenoiser(), torch.zeros(1, 1, plan.prefix_frames, 2, 2)
    settings = EngineSettings(plan, shifted(12, 3.0), policy=policy)
    generate(denoiser, settings, torch.zeros(1, 1, 8, 2, 2), prefix=prefix if plan.prefix_frames else None)
    taken = {chunk: [step for c, step in denoiser.calls if c == chunk and step < 12] for chunk in expected}
    assert taken == expected


def test_a_first_list_that_the_run_does_not_have_is_refused():
    with pytest.raises(SettingError, match="first_chunk_steps: got 12, accepted: own steps 0..11"):
        StaticSchedule(computed=(0, 11), first=(0, 12)).begin(shifted(12, 3.0), DummyDenoiser())
    with pytest.raises(SettingError, match="first_chunk_steps"):
        StaticSchedule(computed=(0, 11), first=(1, 11))
    every = tuple(range(12))
    assert StaticSchedule(computed=every, first=(0, 11)).note(12) is None  # the first chunk reuses
    assert "every step is computed" in (StaticSchedule(computed=every, first=every).note(12) or "")
