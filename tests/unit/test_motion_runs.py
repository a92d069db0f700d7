"""Token-level reuse in whole runs of a tiny Wan model: its laws, and what it goes together with."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field, replace

import pytest
import torch
from test_wan import tiny
from torch import Tensor

from flowcache_core.denoiser import ChunkInput
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.errors import SettingError
from flowcache_core.kv import ImportanceRedundancy
from flowcache_core.kv.cache import KVCache
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.storage import STORAGES
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.plan import blockwise, staggered
from flowcache_core.plan.base import Plan
from flowcache_core.plan.window import window
from flowcache_core.report.events import Event, PlacesComputed, StepTaken
from flowcache_core.report.places import laid_over, sentence, tiles
from flowcache_core.report.record import Recorder
from flowcache_core.reuse import QUANTITIES
from flowcache_core.reuse.base import ReusePolicy
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.distance import LatentDistance
from flowcache_core.reuse.forecast import Forecast, Taylor
from flowcache_core.reuse.motion import Motion, grid_of
from flowcache_core.reuse.motion_reference import ReferenceMotion
from flowcache_core.reuse.motion_weights import motion_weights
from flowcache_core.reuse.never import Never
from flowcache_core.reuse.partial_schedule import PartialSchedule
from flowcache_core.reuse.quantity import Residual, Velocity
from flowcache_core.rows import Rows
from flowcache_core.schedule import shifted

STEPS, TOKENS = 8, 12  # tokens: of a chunk of two frames
SCHEDULE = shifted(STEPS, 1.0)
PLANS = {
    "blockwise": blockwise(frames=6, chunk_frames=2, steps=STEPS),
    "staggered": staggered(frames=6, chunk_frames=2, steps=STEPS, ar_step=3),
    "window": window(frames=6, chunk_frames=2, steps=STEPS, window_chunks=2),
}
PARTLY = Motion(threshold=0.1, warmup_steps=2, uniform_updates=1, floor=0.1, minimum=0.1)


@dataclass
class Watching(WanDenoiser):
    """Notes every forward: chunk, step, rows."""

    forwards: list[tuple[int, int, Rows | None]] = field(default_factory=list)

    def compute(self, item: ChunkInput, cache, *, keep_residual=False, rows=None):
        self.forwards.append((item.chunk.index, item.step, rows))
        return super().compute(item, cache, keep_residual=keep_residual, rows=rows)


def denoiser(branches: int = 2, prompts: int = 1) -> Watching:
    draw = torch.Generator().manual_seed(3)
    texts = {2 * i: [torch.randn(1, 5, 20, generator=draw) for _ in range(2)] for i in range(prompts)}
    return Watching(tiny(), texts, guidance=3.0 if branches == 2 else 1.0)


def run(policy: ReusePolicy, plan: Plan = PLANS["blockwise"], model: WanDenoiser | None = None, **settings):
    """Latents and steps of a run."""
    events: list[Event] = []
    prefix, seed = settings.pop("prefix", None), settings.pop("seed", 1)
    noise = torch.randn(1, 16, 6, 4, 6, generator=torch.Generator().manual_seed(seed))
    made = EngineSettings(plan, SCHEDULE, policy=policy, **settings)
    latents = generate(model or denoiser(), made, noise, prefix=prefix, observe=events.append)
    return latents, [event for event in events if isinstance(event, StepTaken)]


def shares(steps: list[StepTaken]) -> list[float]:
    return [step.computed_tokens / step.tokens for step in steps]


# ---- laws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize(
    "quantity", [Velocity(), Forecast(correction=0), Residual()], ids=["velocity", "forecast", "residual"]
)
def test_bit_identical_to_no_reuse_and_to_chunkwise(plan: Plan, quantity) -> None:
    never, _ = run(Never(), plan, quantity=quantity)
    for nothing in (replace(PARTLY, threshold=0.0), Motion(share=1.0, warmup_steps=1)):
        assert torch.equal(run(nothing, plan, quantity=quantity)[0], never)
    chunkwise, by_chunk = run(Chunkwise(threshold=0.15, warmup_steps=2, inclusive=False), plan, quantity=quantity)
    assert {step.action for step in by_chunk} == {"compute", "reuse"}
    for same in (Motion(floor=1.0), Motion(uniform_updates=STEPS), Motion(uniform_steps=STEPS, uniform_updates=0)):
        latents, steps = run(replace(same, threshold=0.15, warmup_steps=2), plan, quantity=quantity)
        assert [step.action for step in steps] == [step.action for step in by_chunk]
        assert torch.equal(latents, chunkwise)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_run_takes_whole_partial_and_reused_steps(plan: Plan) -> None:
    model = denoiser()
    latents, steps = run(PARTLY, plan, model)
    assert {step.action for step in steps} == {"compute", "part", "reuse"} and latents.isfinite().all()
    assert [(step.chunk, step.step) for step in steps if step.action != "reuse"] == [one[:2] for one in model.forwards]
    for step, (*_, rows) in zip((s for s in steps if s.action != "reuse"), model.forwards, strict=True):
        assert step.computed_tokens == (TOKENS if rows is None else rows.count)
        assert step.context_tokens >= TOKENS
    last = [step for step in steps if step.step == STEPS - 1]
    assert all(step.action == "compute" for step in last)
    assert all(step.computed_tokens == 0 for step in steps if step.action == "reuse")


def test_a_skipped_token_goes_on_with_its_own_last_velocity() -> None:
    """Each step gone through by hand: computed rows as the model answers, all others as they were computed last."""
    model, seen = denoiser(), []

    class Noting(Watching):
        def compute(self, item, cache, *, keep_residual=False, rows=None):
            output = super().compute(item, cache, keep_residual=keep_residual, rows=rows)
            seen.append((item, rows, self.guide(output.velocity, item)))
            return output

    model = Noting(model.transformer, model.prompts, model.guidance)
    latents, steps = run(PARTLY, PLANS["blockwise"], model)
    answers = {(item.chunk.index, item.step): (item, rows, answer) for item, rows, answer in seen}
    partial = 0
    for chunk in range(3):
        x = answers[chunk, 0][0].latents
        velocity = torch.zeros_like(x)
        for step in range(STEPS):
            if (chunk, step) in answers:
                item, rows, answer = answers[chunk, step]
                assert (item.latents - x).abs().max() < 1e-5
                where = torch.ones(x.shape[2:], dtype=torch.bool) if rows is None else rows.pixels(x)
                velocity = torch.where(where, answer, velocity)
                partial += rows is not None
            x = x + (SCHEDULE.sigmas[step + 1] - SCHEDULE.sigmas[step]) * velocity
        assert (latents[:, :, 2 * chunk : 2 * chunk + 2] - x).abs().max() < 1e-5
    assert partial > 2 and len(steps) == 3 * STEPS


def test_a_forecast_takes_every_token_from_its_own_noise_levels() -> None:
    """A velocity linear in sigma, for every token another slope, is forecast exactly though tokens have gaps of their
    own: the run ends where one without reuse does."""
    slopes = torch.linspace(-1, 1, 16 * 2 * 4 * 6).view(1, 16, 2, 4, 6)

    class Linear(Watching):
        def compute(self, item, cache, *, keep_residual=False, rows=None):
            output = super().compute(item, cache, keep_residual=keep_residual, rows=rows)
            exact = (slopes * item.sigma + 0.5).expand_as(output.velocity)
            wrong = torch.full_like(exact, 77.0)
            velocity = exact if rows is None else torch.where(rows.pixels(item.latents), exact, wrong)
            return replace(output, velocity=velocity)

    def latents(policy: ReusePolicy) -> tuple[Tensor, list[StepTaken]]:
        made = denoiser()
        model = Linear(made.transformer, made.prompts, made.guidance)
        return run(policy, model=model, quantity=Forecast(order=1, correction=0))

    exact, _ = latents(Never())
    found, steps = latents(Motion(share=0.5, warmup_steps=2, uniform_updates=0))
    assert sum(step.action == "part" for step in steps) == 3 * (STEPS - 3)
    assert (found - exact).abs().max() < 1e-4


def test_one_copy_to_the_cpu_a_tick_and_none_for_a_fixed_share(monkeypatch) -> None:
    copies = 0

    def cpu(tensor: Tensor) -> Tensor:
        nonlocal copies
        copies += 1
        return tensor

    monkeypatch.setattr(Tensor, "cpu", cpu)
    plan = PLANS["staggered"]
    run(PARTLY, plan)
    assert 0 < copies <= len(plan.ticks)
    copies = 0
    _, steps = run(Motion(share=0.5, warmup_steps=2, uniform_updates=1), plan)
    assert copies == 0
    assert set(shares(steps)) == {1.0, 0.5}


def test_nothing_survives_a_run() -> None:
    model = denoiser()
    noise = torch.randn(1, 16, 6, 4, 6)
    kept: list[weakref.ref] = []
    state = PARTLY.begin(SCHEDULE, model)
    begin = type(PARTLY).begin
    try:
        type(PARTLY).begin = lambda self, schedule, denoiser: state
        generate(model, EngineSettings(PLANS["staggered"], SCHEDULE, policy=PARTLY), noise)
    finally:
        type(PARTLY).begin = begin
    assert not state.tokens and not state.chunks and not state.distance.previous
    kept = [weakref.ref(rows.index) for *_, rows in model.forwards if rows is not None]
    assert kept
    model.forwards.clear()
    gc.collect()
    assert not any(ref() is not None for ref in kept)


def test_two_runs_are_the_same_run() -> None:
    model = denoiser()
    assert torch.equal(run(PARTLY, PLANS["window"], model)[0], run(PARTLY, PLANS["window"], model)[0])


# ---- goes together with ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("dtype", [None, torch.float8_e4m3fn])
@pytest.mark.parametrize("clean_pass", [False, True])
def test_with_a_budget(plan: Plan, dtype, clean_pass: bool) -> None:
    kv = KVSettings(budget=1.0, compressor=ImportanceRedundancy(), dtype=dtype)
    latents, steps = run(PARTLY, plan, kv=kv, clean_pass=clean_pass)
    assert latents.isfinite().all() and {step.action for step in steps} >= {"compute", "part"}
    bounded = max(step.kv_tokens for step in steps)
    assert bounded <= (1 + plan.max_active) * TOKENS
    whole, _ = run(Never(), plan, kv=kv, clean_pass=clean_pass)
    assert torch.equal(run(replace(PARTLY, threshold=0.0), plan, kv=kv, clean_pass=clean_pass)[0], whole)


def test_with_prompts_by_chunk_and_a_given_beginning() -> None:
    plan = blockwise(frames=6, chunk_frames=2, steps=STEPS, prefix_frames=2)
    prefix = torch.randn(1, 16, 2, 4, 6, generator=torch.Generator().manual_seed(7))
    model = denoiser(prompts=2)
    latents, steps = run(PARTLY, plan, model, prefix=prefix)
    assert torch.equal(latents[:, :, :2], prefix) and any(step.action == "part" for step in steps)
    other, _ = run(PARTLY, plan, denoiser(prompts=2), prefix=prefix + torch.linspace(0, 5, 24).view(4, 6))
    assert not torch.equal(other[:, :, 2:], latents[:, :, 2:])


def test_the_first_frame_of_a_continuation_is_compared_with_what_was_given() -> None:
    plan = blockwise(frames=6, chunk_frames=2, steps=STEPS, prefix_frames=2)
    prefix = torch.randn(1, 16, 2, 4, 6)
    seen: list[Tensor | None] = []

    class Seeing(Motion):
        def begin(self, schedule, denoiser):
            state = super().begin(schedule, denoiser)
            inner = state.decide
            state.decide = lambda items: (seen.extend(item.before for item in items), inner(items))[1]
            return state

    latents, _ = run(
        Seeing(**{f: getattr(PARTLY, f) for f in ("threshold", "warmup_steps", "floor", "minimum")}),
        plan,
        prefix=prefix,
    )
    assert all(torch.equal(one, prefix[:, :, 1]) for one in seen[:STEPS])
    assert all(torch.equal(one, latents[:, :, 3]) for one in seen[STEPS:])


@pytest.mark.parametrize("name", [name for name, kind in QUANTITIES.items() if kind.by_token and name != "forecast"])
@pytest.mark.parametrize("keep_on", [None, "cpu"])
def test_every_quantity_by_token(name: str, keep_on: str | None) -> None:
    latents, steps = run(PARTLY, quantity=QUANTITIES[name](), reuse_device=keep_on)
    assert latents.isfinite().all() and any(step.action == "part" for step in steps)


def test_a_batch_shares_its_masks() -> None:
    noise = torch.randn(2, 16, 6, 4, 6)
    model = denoiser()
    events: list[Event] = []
    latents = generate(model, EngineSettings(PLANS["blockwise"], SCHEDULE, policy=PARTLY), noise, observe=events.append)
    assert latents.shape[0] == 2 and any(rows is not None for *_, rows in model.forwards)


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused_by_name() -> None:
    plan = PLANS["blockwise"]
    for settings, field_name, reason in (
        ({"attention": "bidirectional"}, "attention", "computed as one"),
        ({"quantity": Forecast()}, "forecast_correction", "gone through again"),
        ({"quantity": Taylor()}, "reused quantity", "counts a chunk's steps"),
    ):
        with pytest.raises(SettingError, match=reason) as error:
            EngineSettings(plan, SCHEDULE, policy=PARTLY, **settings)
        assert error.value.field == field_name


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"floor": -0.1}, "motion_floor"),
        ({"floor": float("nan")}, "floor"),
        ({"vote": 1.0}, "motion_vote"),
        ({"vote": 0.0}, "motion_vote"),
        ({"minimum": 1.1}, "minimum_share"),
        ({"share": 2.0}, "fixed_share"),
        ({"uniform_updates": -1}, "uniform_updates"),
        ({"uniform_steps": 1.5}, "uniform_steps"),
        ({"threshold": -1.0}, "threshold"),
    ],
)
def test_settings_out_of_range(fields: dict, named: str) -> None:
    with pytest.raises(SettingError) as error:
        Motion(**fields)
    assert error.value.field == named


def test_one_frame_at_the_start_has_no_motion_and_is_computed_as_a_whole() -> None:
    plan = blockwise(frames=3, chunk_frames=1, steps=STEPS)
    noise = torch.randn(1, 16, 3, 4, 6)
    events: list[Event] = []
    settings = EngineSettings(plan, SCHEDULE, policy=replace(PARTLY, uniform_updates=0))
    generate(denoiser(), settings, noise, observe=events.append)
    steps = [event for event in events if isinstance(event, StepTaken)]
    assert all(step.action != "part" for step in steps if step.chunk == 0)
    assert any(step.action == "part" for step in steps if step.chunk > 0)


def test_notes_say_where_tokens_never_decide() -> None:
    assert "chunkwise" in Motion(floor=1.0).note(20)
    assert "chunkwise" in Motion(warmup_steps=5, uniform_updates=6).note(12)
    assert "every step" in Motion(share=0.5, warmup_steps=5, uniform_updates=6).note(12)
    assert Motion().note(20) is None and Motion(share=0.5).note(20) is None
    assert "every step" in Motion(threshold=0.0).note(20)


def test_the_cap_is_on_a_tokens_age() -> None:
    """Under a cap of 2 no token is reused three times in a row, whatever the minimum says."""
    policy = Motion(threshold=50.0, warmup_steps=1, uniform_updates=0, floor=0.0, max_reuses=2, minimum=0.9)
    model = denoiser()
    _, steps = run(policy, model=model)
    assert [step.action[0] for step in steps[:STEPS]] == ["c", "r", "r", "c", "r", "r", "c", "c"]
    assert steps[3].reason == "cap"


@pytest.mark.parametrize("warmup", [1, 2])
def test_a_gap_with_one_partial_step_is_gone_through_again(warmup: int) -> None:
    """Velocities linear in sigma, a slope a token: forecast and correction are exact, also where a token has been
    computed once only before."""
    policy = PartialSchedule(warmup_steps=warmup, computed=(0, 4, 7), partial=(2, 6), share=0.4)
    assert policy.parts == "once" and PartialSchedule(computed=(0, 6), partial=(2, 3)).parts == "often"
    for quantity in (Forecast(), Forecast(order=2, correction=3)):
        latents, steps = run(policy, PLANS["staggered"], quantity=quantity)
        assert latents.isfinite().all()
        assert [step.action[0] for step in steps if step.chunk == 1] == list("c" + "cr"[warmup < 2] + "prcrpc")


def test_a_partial_schedule_says_what_it_cannot() -> None:
    for fields, named in (
        ({"partial": (0,)}, "partial_steps"),
        ({"partial": (4,), "computed": (0, 4)}, "partial_steps"),
        ({"share": 0.0}, "partial_share"),
        ({"chosen_by": "luck"}, "chosen_by"),
    ):
        with pytest.raises(SettingError) as error:
            PartialSchedule(**fields)
        assert error.value.field == named
    with pytest.raises(SettingError, match="partial_steps"):
        EngineSettings(PLANS["blockwise"], SCHEDULE, policy=PartialSchedule(partial=(STEPS,)))
    with pytest.raises(SettingError, match="gone through again"):
        often = PartialSchedule(computed=(0, 6), partial=(2, 3))
        EngineSettings(PLANS["blockwise"], SCHEDULE, policy=often, quantity=Forecast())


# ---- K/V that is packed, or elsewhere --------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("device", [None, "cpu"])
def test_with_packed_kv_and_kv_on_the_cpu(storage: str, device: str | None) -> None:
    """The first chunk sees no packed chunk: what is written by rows is bit for bit what it is in plain K/V."""
    plain, steps = run(PARTLY)
    kv = KVSettings(budget=1.0, compressor=ImportanceRedundancy(), storage=STORAGES[storage](), device=device)
    found, taken = run(PARTLY, kv=kv)
    assert torch.equal(found[:, :, :2], plain[:, :, :2]) and found.isfinite().all()
    assert sum(step.action == "part" for step in taken) > 0
    assert [step.computed_tokens for step in taken if step.chunk == 0] == [
        step.computed_tokens for step in steps if step.chunk == 0
    ]


# ---- a mask for every branch -----------------------------------------------------------------------------------------

APART = ReferenceMotion(
    threshold=0.1,
    warmup_steps=2,
    uniform_updates=1,
    floor=0.1,
    minimum=0.1,
    always_last=False,
    distance=LatentDistance(),
)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_branches_compute_tokens_of_their_own(plan: Plan) -> None:
    model = denoiser()
    latents, steps = run(APART, plan, model, quantity=Residual())
    assert latents.isfinite().all()
    apart = [rows.each for _, _, rows in model.forwards if rows is not None]
    assert apart and all(len(each) == 2 for each in apart)
    masks = [[None if one is None else one.index.tolist() for one in each] for each in apart]
    assert any(one != other for one, other in masks)
    part = [step for step in steps if step.action == "part"]
    expected = [round(sum(0 if one is None else one.count for one in each) / 2) for each in apart]
    assert [step.computed_tokens for step in part] == expected


def test_a_branch_is_computed_as_it_would_be_alone() -> None:
    """Other rows in every branch: velocity and K/V of each are those of a forward in which all branches have them."""
    x = torch.randn(1, 16, 6, 4, 6, generator=torch.Generator().manual_seed(2))
    plan, each = PLANS["blockwise"], (Rows(torch.tensor([0, 5]), (2, 2, 3)), Rows(torch.tensor([3, 7, 11]), (2, 2, 3)))

    def after(rows: Rows) -> tuple[Tensor, Tensor]:
        model = denoiser()
        cache = KVCache(model.kv_spec(x), KVSettings(), plan)
        cache.begin(plan.chunks[0])
        item = ChunkInput(plan.chunks[0], 0, 0.9, 900.0, x[:, :, :2])
        model.compute(item, cache)
        out = model.compute(replace(item, latents=2 * x[:, :, :2]), cache, rows=rows)
        return out.velocity, torch.stack([cache.context(0, range(b, b + 1), plan.chunks[0])[0] for b in range(2)])

    velocity, keys = after(Rows.by_branch(each, (2, 2, 3)))
    for branch, own in enumerate(each):
        alone, stored = after(own)
        places = own.pixels(x)
        assert torch.allclose(velocity[branch][..., places], alone[branch][..., places], atol=1e-5)
        assert torch.allclose(keys[branch], stored[branch], atol=1e-5)
    only = Rows.by_branch((None, each[1]), (2, 2, 3))
    assert torch.allclose(after(only)[1][0], denoised_keys(x, plan), atol=1e-6)


def denoised_keys(x: Tensor, plan: Plan) -> Tensor:
    """K of the first branch behind a whole step."""
    model = denoiser()
    cache = KVCache(model.kv_spec(x), KVSettings(), plan)
    cache.begin(plan.chunks[0])
    model.compute(ChunkInput(plan.chunks[0], 0, 0.9, 900.0, x[:, :, :2]), cache)
    return cache.context(0, range(1), plan.chunks[0])[0]


def test_the_published_rule_keeps_the_laws() -> None:
    plain = run(Never(), quantity=Residual())[0]
    assert torch.equal(run(replace(APART, threshold=0.0), quantity=Residual())[0], plain)
    even = replace(APART, floor=1.0, vote=None, minimum=0.0)
    by_chunk = Chunkwise(threshold=0.1, warmup_steps=2, always_last=False, distance=LatentDistance())
    assert torch.equal(run(even, quantity=Residual())[0], run(by_chunk, quantity=Residual())[0])
    with pytest.raises(SettingError, match="reused quantity"):
        run(APART)
    with pytest.raises(SettingError, match="fixed_share"):
        replace(APART, share=0.5)


# ---- where the compute went ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [PARTLY, replace(PARTLY, share=0.5, vote=None)], ids=["by need", "fixed share"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_places_add_up_to_what_was_computed(policy: Motion, plan: Plan) -> None:
    events: list[Event] = []
    recorder = Recorder()
    noise = torch.randn(1, 16, 6, 4, 6, generator=torch.Generator().manual_seed(1))

    def observe(event: Event) -> None:
        events.append(event)
        recorder(event)

    generate(denoiser(), EngineSettings(plan, SCHEDULE, policy=policy), noise, observe=observe)
    record = recorder.record()
    told = {event.chunk: event for event in events if isinstance(event, PlacesComputed)}
    parted = {step.chunk for step in record.steps_taken if step.action == "part"}
    assert parted and set(told) == parted == {one.chunk for one in record.places}
    for chunk, event in told.items():
        counts = torch.tensor(event.counts)
        computed = sum(step.computed_tokens for step in record.steps_taken if step.chunk == chunk)
        assert counts.shape == (2, 2, 3) and int(counts.sum()) == computed and int(counts.max()) <= STEPS
    video = (torch.rand(21, 32, 48, 3) * 255).byte().numpy()
    shown = tiles(record, video)
    assert [one.chunk for one in shown] == sorted(parted) and all(one.picture.shape == (32, 48, 3) for one in shown)
    assert "places: computed" in (sentence(record) or "")


def test_runs_without_steps_in_part_tell_nothing_of_places() -> None:
    recorder = Recorder()
    noise = torch.randn(1, 16, 6, 4, 6, generator=torch.Generator().manual_seed(1))
    settings = EngineSettings(PLANS["blockwise"], SCHEDULE, policy=Chunkwise(threshold=0.1))
    generate(denoiser(), settings, noise, observe=recorder)
    assert recorder.record().places == () and sentence(recorder.record()) is None and tiles(recorder.record()) == []


def test_colours_stand_where_the_counts_are() -> None:
    often = torch.tensor([[0.0, 1.0], [0.0, 0.0]]).double().numpy()
    alone = laid_over(often, None)
    assert alone.shape == (32, 32, 3) and (alone[0, 16] < alone[0, 0]).all() and (alone[31, 31] == alone[0, 0]).all()
    grey = torch.full((7, 9, 3), 100).byte().numpy()  # a frame that the grid does not divide
    assert laid_over(often, grey).shape == (7, 9, 3)


# ---- odd sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 7), (4, 5), (1, 1)])
def test_grids_that_the_patch_does_not_divide(size: tuple[int, int]) -> None:
    """The core's model refuses them by name; a host pads them, and the policy's tokens are smaller at the edge."""
    noise = torch.randn(1, 16, 6, *size, generator=torch.Generator().manual_seed(1))
    with pytest.raises(SettingError, match="multiple of 2"):
        generate(denoiser(), EngineSettings(PLANS["staggered"], SCHEDULE, policy=PARTLY), noise)
    frames, rows, columns = 2, -(-size[0] // 2), -(-size[1] // 2)
    assert grid_of(noise[:, :, :2]) == (frames, rows, columns)
    assert motion_weights(noise[:, :, :2]).shape == (frames, rows * columns)
    assert Rows(torch.tensor([0]), (frames, rows, columns)).pixels(noise[:, :, :2]).shape == (frames, *size)
