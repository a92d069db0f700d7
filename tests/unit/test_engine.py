"""The engine: laws of the house on a denoiser with known arithmetic, and on a small real transformer."""

from __future__ import annotations

import gc
import weakref
from copy import copy
from dataclasses import dataclass

import pytest
import torch
from dummy import DummyDenoiser

from flowcache_core.denoiser import ChunkInput
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.errors import SettingError
from flowcache_core.kv.cache import KVCache
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.plan import blockwise, staggered, window
from flowcache_core.plan.base import Plan
from flowcache_core.report.events import CacheCompressed, CachePass, ChunkFinished, RunFinished, RunStarted, StepTaken
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.distance import LatentDistance, PatchDistance, TimeDistance
from flowcache_core.reuse.easycache import EasyCache
from flowcache_core.reuse.interval import Interval
from flowcache_core.reuse.magcache import MagCache
from flowcache_core.reuse.never import Never
from flowcache_core.reuse.quantity import Increment, Residual, Velocity
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.reuse.teacache import TeaCache
from flowcache_core.schedule import shifted
from flowcache_core.solvers.euler import Euler
from flowcache_core.solvers.renoise import ReNoise
from flowcache_core.solvers.unipc import UniPC

PLAN_ROWS = {
    "blockwise": lambda: blockwise(15, 3, 8),
    "staggered": lambda: staggered(15, 3, 8, 4),
    "window": lambda: window(15, 3, 8, 2),
}


@pytest.fixture(params=PLAN_ROWS)
def plan(request: pytest.FixtureRequest) -> Plan:
    return PLAN_ROWS[request.param]()


@pytest.fixture(scope="module")
def transformer() -> WanTransformer:
    torch.manual_seed(0)
    model = WanTransformer(WanConfig(dim=24, ffn_dim=48, num_layers=2, num_heads=2, text_dim=16, freq_dim=16)).eval()
    torch.nn.init.normal_(model.head.head.weight, std=0.3)
    return model.requires_grad_(False)


def wan(transformer: WanTransformer, guidance: float = 3.0) -> WanDenoiser:
    generator = torch.Generator().manual_seed(1)
    return WanDenoiser(transformer, {0: [torch.randn(1, 4, 16, generator=generator) for _ in range(2)]}, guidance)


def noise(plan: Plan, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 16, plan.frames, 4, 4, generator=torch.Generator().manual_seed(seed))


def run(denoiser, plan: Plan, **settings):
    events = []
    schedule = shifted(plan.steps, 3.0)
    out = generate(denoiser, EngineSettings(plan, schedule, **settings), noise(plan), observe=events.append)
    return out, events


def steps_of(events) -> list[StepTaken]:
    return [event for event in events if isinstance(event, StepTaken)]


# -- law 1: settings that do nothing change nothing ------------------------------------------------------------------


@pytest.mark.parametrize("solver", [Euler(), UniPC(), ReNoise()])
@pytest.mark.parametrize("distance", [LatentDistance(), PatchDistance(), TimeDistance((-1.0, 0.0))])
@pytest.mark.parametrize("policy", [Chunkwise, TeaCache])
def test_threshold_zero_is_bit_identical(transformer, plan, solver, distance, policy):
    base, _ = run(wan(transformer), plan, solver=solver)
    zero, events = run(wan(transformer), plan, solver=solver, policy=policy(threshold=0.0, distance=distance))
    assert torch.equal(base, zero)
    assert all(step.action == "compute" for step in steps_of(events))


def test_budget_of_the_whole_video_is_bit_identical(transformer, plan):
    base, _ = run(wan(transformer), plan)
    full, events = run(wan(transformer), plan, kv=KVSettings(budget=float(len(plan.chunks))))
    assert torch.equal(base, full)
    assert not any(isinstance(event, CacheCompressed) for event in events)


def test_a_smaller_budget_does_change_the_result(transformer):
    plan = PLAN_ROWS["blockwise"]()
    base, _ = run(wan(transformer), plan)
    small, events = run(wan(transformer), plan, kv=KVSettings(budget=1.0))
    compressions = [event for event in events if isinstance(event, CacheCompressed)]
    assert [(c.chunk, c.tokens_before, c.tokens_after) for c in compressions] == [(2, 24, 12), (3, 24, 12), (4, 24, 12)]
    assert torch.equal(base[:, :, :6], small[:, :, :6])
    assert not torch.equal(base[:, :, 6:], small[:, :, 6:])


# -- law 2: a reused step writes no K/V; last steps and clean passes are computed ------------------------------------


def test_reused_steps_leave_the_kv_of_the_last_computed_step():
    plan = staggered(6, 3, 6, 1)
    denoiser = DummyDenoiser()
    run(denoiser, plan, policy=StaticSchedule(computed=(0, 3)))
    assert denoiser.calls == [(0, 0), (1, 0), (0, 3), (1, 3), (0, 5), (1, 5)]
    seen_by_second = [
        context[0] for (chunk, _), context in zip(denoiser.calls, denoiser.contexts, strict=True) if chunk
    ]
    assert seen_by_second == [0.0, 3.0, 5.0]


def test_clean_pass_is_computed_for_every_chunk_but_the_last(plan):
    denoiser = DummyDenoiser()
    _, events = run(denoiser, plan, clean_pass=True, policy=StaticSchedule(computed=(0,)))
    passes = [event for event in events if isinstance(event, CachePass)]
    assert [(event.kind, event.chunk) for event in passes] == [("clean", index) for index in range(4)]
    assert all(step.action == "compute" for step in steps_of(events) if step.step == plan.steps - 1)


def test_without_the_clean_pass_history_is_what_the_last_step_left():
    plan = PLAN_ROWS["blockwise"]()
    denoiser = DummyDenoiser()
    run(denoiser, plan)
    assert denoiser.contexts[-1][:12:3] == [7.0, 1007.0, 2007.0, 3007.0]
    clean = DummyDenoiser()
    run(clean, plan, clean_pass=True)
    assert clean.contexts[-1][:12:3] == [8.0, 1008.0, 2008.0, 3008.0]


# -- law 3: K/V bytes do not grow with the video ---------------------------------------------------------------------


def test_kv_bytes_are_the_same_for_20_100_and_400_chunks():
    sizes = set()
    for chunks in (20, 100, 400):
        _, events = run(DummyDenoiser(), blockwise(chunks, 1, 2), kv=KVSettings(budget=5.0))
        sizes.add(events[0].kv_bytes)
    assert len(sizes) == 1
    _, events = run(DummyDenoiser(), blockwise(100, 1, 2))
    assert events[0].kv_bytes > 10 * sizes.pop()


# -- law 4: nothing survives a run -----------------------------------------------------------------------------------


def test_same_result_after_errors_and_interrupts(transformer):
    plan = PLAN_ROWS["staggered"]()
    settings = {
        "policy": Chunkwise(threshold=0.2, warmup_steps=2),
        "kv": KVSettings(budget=1.0),
        "quantity": Residual(),
    }
    denoiser = wan(transformer)
    first, _ = run(denoiser, plan, **settings)

    def stop(event):
        if isinstance(event, StepTaken) and event.tick == 9:
            raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            generate(denoiser, EngineSettings(plan, shifted(8, 3.0), **settings), noise(plan), observe=stop)
        again, _ = run(denoiser, plan, **settings)
        assert torch.equal(first, again)


def test_a_failed_run_releases_its_cache():
    plan = PLAN_ROWS["blockwise"]()
    released: list[weakref.ref] = []
    denoiser = DummyDenoiser(fail_at=(2, 3))
    compute = denoiser.compute

    def spying(item, cache, **options):
        if not released:
            released.append(weakref.ref(cache))
        return compute(item, cache, **options)

    denoiser.compute = spying
    with pytest.raises(InterruptedError):
        run(denoiser, plan)
    gc.collect()
    cache = released[0]()
    assert cache is None or cache.bytes == 0


def test_noise_and_prefix_are_not_written_to(transformer):
    plan = blockwise(9, 3, 4, prefix_frames=3)
    start, prefix = noise(plan), torch.randn(1, 16, 3, 4, 4)
    copies = start.clone(), prefix.clone()
    out = generate(wan(transformer), EngineSettings(plan, shifted(4, 3.0)), start, prefix=prefix)
    assert torch.equal(start, copies[0]) and torch.equal(prefix, copies[1])
    assert torch.equal(out[:, :, :3], prefix)


# -- law 6: settings that cannot help say so -------------------------------------------------------------------------


def test_notes_name_what_cannot_help():
    plan = blockwise(12, 3, 4)
    settings = EngineSettings(plan, shifted(4, 3.0), policy=Chunkwise(warmup_steps=4), kv=KVSettings(budget=9.0))
    policy_note, kv_note = settings.notes()
    assert policy_note == "4 steps with 4 warm-up steps computed: nothing left to reuse"
    assert "budget 9" in kv_note and "nothing to compress" in kv_note
    with pytest.raises(SettingError, match="warmup_steps"):
        EngineSettings(plan, shifted(4, 3.0), policy=Chunkwise(warmup_steps=5)).notes()


# -- arithmetic ------------------------------------------------------------------------------------------------------


def test_euler_integrates_a_constant_velocity(plan):
    out, _ = run(DummyDenoiser(), plan)
    assert torch.allclose(out, noise(plan) - 1.0, atol=1e-6)


@pytest.mark.parametrize("quantity", [Velocity(), Residual()])
def test_reusing_a_constant_velocity_loses_nothing(plan, quantity):
    base, _ = run(DummyDenoiser(), plan)
    reused, events = run(DummyDenoiser(), plan, policy=StaticSchedule(computed=(0, 4)), quantity=quantity)
    assert torch.allclose(base, reused, atol=1e-6)
    assert sum(step.action == "reuse" for step in steps_of(events)) == 5 * 5


def test_increment_is_added_again_unscaled():
    plan = blockwise(3, 3, 4)
    schedule = shifted(4, 1.0)
    settings = EngineSettings(plan, schedule, policy=StaticSchedule(computed=(0,)), quantity=Increment())
    out = generate(DummyDenoiser(lambda item: item.latents), settings, noise(plan))
    dt = schedule.sigmas[1] - schedule.sigmas[0]
    x = noise(plan)
    for _ in range(3):
        x = x + noise(plan) * dt
    x = x * (1 + schedule.sigmas[4] - schedule.sigmas[3])
    assert torch.allclose(out, x, atol=1e-6)


def test_branches_are_combined_by_the_denoiser(transformer):
    plan = PLAN_ROWS["blockwise"]()
    denoiser = wan(transformer)
    same = WanDenoiser(transformer, {0: [denoiser.prompts[0][0]] * 2}, 3.0)
    single = WanDenoiser(transformer, {0: [denoiser.prompts[0][0]]}, 1.0)
    assert torch.allclose(run(same, plan)[0], run(single, plan)[0], atol=1e-4)
    assert not torch.allclose(run(denoiser, plan)[0], run(single, plan)[0], atol=1e-2)


def test_batch_rows_are_independent(transformer):
    plan = PLAN_ROWS["window"]()
    settings = EngineSettings(plan, shifted(8, 3.0), kv=KVSettings(budget=1.0))
    both = torch.cat([noise(plan, 0), noise(plan, 5)])
    out = generate(wan(transformer), settings, both)
    for row in range(2):
        assert torch.allclose(out[row : row + 1], generate(wan(transformer), settings, both[row : row + 1]), atol=1e-4)


def test_a_prompt_switch_leaves_earlier_chunks_alone(transformer):
    plan = PLAN_ROWS["blockwise"]()
    denoiser = wan(transformer)
    other = [torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(9)) for _ in range(2)]
    switched = WanDenoiser(transformer, {0: denoiser.prompts[0], 2: other}, 3.0)
    base, _ = run(denoiser, plan)
    out, _ = run(switched, plan)
    assert torch.equal(base[:, :, :6], out[:, :, :6])
    assert not torch.allclose(base[:, :, 6:9], out[:, :, 6:9], atol=1e-3)


# -- bidirectional windows -------------------------------------------------------------------------------------------


def test_bidirectional_pass_sees_one_timestep_per_chunk():
    plan = staggered(6, 3, 2, 1)
    rows = []

    class Watching(DummyDenoiser):
        def window(self, latents, timesteps, items):
            rows.append(timesteps[::3])
            return super().window(latents, timesteps, items)

    run(Watching(), plan, attention="bidirectional")
    first, second = shifted(2, 3.0).timesteps
    assert rows == [[first, 999.0], [second, first], [0.0, second]]


def test_bidirectional_and_causal_agree_on_a_single_chunk(transformer):
    plan = blockwise(3, 3, 6)
    causal, _ = run(wan(transformer), plan)
    whole, _ = run(wan(transformer), plan, attention="bidirectional")
    assert torch.allclose(causal, whole, atol=1e-4)


# -- events ----------------------------------------------------------------------------------------------------------


def test_events_tell_the_whole_run(plan):
    _, events = run(DummyDenoiser(), plan)
    started, finished = events[0], events[-1]
    assert isinstance(started, RunStarted) and isinstance(finished, RunFinished)
    assert started.total_steps == plan.total_steps == len(steps_of(events)) == 40
    order = [(step.chunk, step.step) for step in steps_of(events)]
    assert order == [(item.chunk, item.step) for tick in plan.ticks for item in tick.steps]
    assert [event.chunk for event in events if isinstance(event, ChunkFinished)] == list(range(5))
    assert 0 <= finished.engine_seconds <= finished.seconds


def test_finished_chunks_are_handed_out_as_they_end(transformer):
    plan = PLAN_ROWS["staggered"]()
    out, events = run(wan(transformer), plan)
    parts = [event.latents for event in events if isinstance(event, ChunkFinished)]
    assert torch.equal(torch.cat(parts, 2), out)


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("steps", {"schedule": shifted(5, 3.0)}),
        ("attention", {"attention": "dense"}),
        ("budget", {"attention": "bidirectional", "kv": KVSettings(budget=1.0)}),
        ("clean_pass", {"attention": "bidirectional", "clean_pass": True}),
    ],
)
def test_settings_that_do_not_fit_are_refused(field, change):
    with pytest.raises(SettingError) as caught:
        EngineSettings(**{"plan": PLAN_ROWS["blockwise"](), "schedule": shifted(8, 3.0), **change})
    assert caught.value.field == field


@pytest.mark.parametrize("shape", [(1, 16, 14, 4, 4), (16, 15, 4, 4)])
def test_noise_of_another_shape_is_refused(shape):
    settings = EngineSettings(PLAN_ROWS["blockwise"](), shifted(8, 3.0))
    with pytest.raises(SettingError):
        generate(DummyDenoiser(), settings, torch.zeros(shape))


def test_prefix_of_another_length_is_refused():
    plan = blockwise(9, 3, 4, prefix_frames=3)
    with pytest.raises(SettingError, match="prefix frames"):
        generate(
            DummyDenoiser(), EngineSettings(plan, shifted(4, 3.0)), noise(plan), prefix=torch.zeros(1, 16, 2, 4, 4)
        )


# -- what the policy is told, what is kept, and in which order -------------------------------------------------------


def test_a_reuse_undone_by_a_window_pass_starts_the_count_again():
    """Chunk 1 still warms up when chunk 0 would reuse: its steps are computed along and no reuse is counted."""
    plan = staggered(6, 3, 8, 2)
    policy = Chunkwise(threshold=100.0, warmup_steps=3, max_reuses=2, distance=TimeDistance((1.0, 0.0)))
    _, events = run(DummyDenoiser(), plan, attention="bidirectional", policy=policy)
    first = [(step.action[0], step.reason) for step in steps_of(events) if step.chunk == 0]
    # Ticks 3 and 4 are window passes for chunk 1's warm-up; two real reuses follow, then the cap is due.
    assert first[3:5] == [("c", "window pass")] * 2
    assert first[5:7] == [("r", "within threshold")] * 2 and first[7] == ("c", "last step")
    undone = [step for step in steps_of(events) if step.reason == "window pass"]
    assert all(step.distance is not None and step.accumulated == step.distance for step in undone if step.chunk == 0)


@pytest.mark.parametrize(
    ("policy", "count"),
    [(TeaCache(threshold=100.0, distance=TimeDistance((1.0, 0.0)), max_reuses=2), "accumulated"),
     (MagCache(threshold=100.0, curve=(1.0,) + (0.9,) * 7), "product")],
)  # fmt: skip
def test_policies_with_a_count_of_their_own_start_it_again_too(policy, count):
    denoiser, schedule = DummyDenoiser(), shifted(8, 3.0)
    state = policy.begin(schedule, denoiser)
    chunk, latents = blockwise(3, 3, 8).chunks[0], torch.zeros(1, 1, 3, 2, 2)
    for step in range(7):
        state.decide([ChunkInput(chunk, step, schedule.sigmas[step], schedule.timesteps[step], latents)])
    untouched = copy(getattr(state, count))
    state.overridden(0)
    assert untouched not in (0.0, {0: 1.0})
    assert getattr(state, count) in (0.0, {0: 1.0})
    assert state.progress(0).consecutive == 0 and state.progress(0).accumulated == 0.0


def test_everything_reused_is_kept_on_the_reuse_device():
    seen = []

    @dataclass(frozen=True)
    class Watching(Velocity):
        keep = 2
        needs_residual = True

        def velocity(self, history, item, sigma_next, denoiser):
            last = history[-1]
            seen.append({t.device.type for t in (last.velocity, last.increment, last.residual, last.item.latents)})
            return torch.zeros(1, *item.latents.shape)

    plan = blockwise(3, 3, 4)
    settings = {"policy": StaticSchedule(computed=(0, 1)), "quantity": Watching()}
    run(DummyDenoiser(), plan, reuse_device="meta", **settings)
    run(DummyDenoiser(), plan, **settings)
    assert seen == [{"meta"}, {"cpu"}]


def test_a_run_that_the_policy_refuses_allocates_no_cache(monkeypatch):
    made = []
    monkeypatch.setattr("flowcache_core.engine.run.KVCache", lambda *arguments: made.append(arguments))
    with pytest.raises(SettingError, match="curve"):
        run(DummyDenoiser(), PLAN_ROWS["blockwise"](), policy=MagCache(curve=(1.0,)))
    assert made == []


@pytest.mark.parametrize(
    ("policy", "note"),
    [
        (MagCache(threshold=0.0, curve=(1.0,) * 8), "threshold 0: every step is computed"),
        (Interval(interval=1), "interval 1: every step is computed"),
        (StaticSchedule(computed=tuple(range(7))), "computed_steps names all 8 steps: every step is computed"),
        (StaticSchedule(computed=(0, 4, 5, 6), warmup_steps=4), "computed_steps names all 8 steps"),
    ],
)
def test_policies_that_compute_everything_say_so(policy, note):
    _, events = run(DummyDenoiser(), PLAN_ROWS["blockwise"](), policy=policy)
    assert all(step.action == "compute" for step in steps_of(events))
    assert len(events[0].notes) == 1 and events[0].notes[0].startswith(note)


def test_policies_that_reuse_something_say_nothing():
    for policy in (StaticSchedule(computed=tuple(range(6))), Interval(interval=2), MagCache(curve=(1.0,) * 8)):
        assert EngineSettings(PLAN_ROWS["blockwise"](), shifted(8, 3.0), policy=policy).notes() == ()


def test_prompts_per_chunk_are_refused_where_one_window_sees_them_all(transformer):
    plan = PLAN_ROWS["staggered"]()
    denoiser = wan(transformer)
    switched = WanDenoiser(transformer, {0: denoiser.prompts[0], 2: denoiser.prompts[0]}, 3.0)
    with pytest.raises(SettingError, match=r"prompts: got 'prompts from chunks \[0, 2\]', accepted: one prompt"):
        run(switched, plan, attention="bidirectional")
    run(denoiser, plan, attention="bidirectional")


def test_recached_history_is_that_of_the_new_prompt(transformer):
    """K/V that chunk 2 finds is what its own prompt makes of the chunks before it, in every layer and branch."""
    plan, old = blockwise(9, 3, 4), wan(transformer).prompts[0]
    new = [torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(9)) for _ in range(2)]
    branches, tokens = range(2), 24
    found: dict[bool, list[torch.Tensor]] = {}

    def history(cache, chunk):
        return [t[..., :tokens, :].clone() for layer in range(2) for t in cache.context(layer, branches, chunk)]

    for recache in (False, True):

        class Watching(WanDenoiser):
            def compute(self, item, cache, *, keep_residual=False, recache=recache):
                output = super().compute(item, cache, keep_residual=keep_residual)
                if (item.chunk.index, item.step) == (2, 0):
                    found[recache] = history(cache, item.chunk)
                return output

        chosen = {"clean_pass": True, "recache": frozenset({2} if recache else ())}
        out, _ = run(Watching(transformer, {0: old, 2: new}, 3.0), plan, **chosen)

    denoiser = WanDenoiser(transformer, {0: new}, 3.0)
    cache = KVCache(denoiser.kv_spec(out), KVSettings(), plan)
    for chunk in plan.chunks:
        cache.begin(chunk)
        item = ChunkInput(chunk, plan.steps, 0.0, 0.0, out[:, :, chunk.first_frame : chunk.end_frame])
        denoiser.compute(item, cache)
        if chunk.index == 2:
            expected = history(cache, chunk)
        cache.commit(chunk)
    assert all(torch.equal(a, b) for a, b in zip(found[True], expected, strict=True))
    other = zip(found[False][2:], expected[2:], strict=True)  # no text has passed before the first layer
    assert not any(torch.allclose(a, b, atol=1e-4) for a, b in other)


@pytest.mark.parametrize(
    "policy",
    [Chunkwise(threshold=0.3, warmup_steps=1), TeaCache(threshold=0.3, warmup_steps=1, distance=LatentDistance()),
     EasyCache(threshold=0.3, warmup_steps=1), MagCache(curve=(1.0,) + (0.95,) * 7, warmup_steps=1), Interval(),
     StaticSchedule(computed=(0, 4)), Never()],
    ids=lambda policy: policy.name,
)  # fmt: skip
def test_the_policy_is_told_of_every_chunk_that_is_done_and_keeps_nothing_of_it(plan, policy, monkeypatch):
    states, told = [], []
    begin = type(policy).begin

    def watched(self, schedule, denoiser):
        state = begin(self, schedule, denoiser)
        finish = state.finish
        state.finish = lambda chunk: (told.append(chunk), finish(chunk))
        states.append(state)
        return state

    def held() -> set[int]:
        """Chunks of which the policy still keeps something."""
        (state,) = states
        stores = [getattr(state, name, {}) for name in ("chunks", "tracks", "product")]
        return set().union(*stores, getattr(getattr(state, "distance", None), "previous", {}))

    def look(event):
        if isinstance(event, ChunkFinished):
            assert told[-1] == event.chunk and event.chunk not in held()

    monkeypatch.setattr(type(policy), "begin", watched)
    generate(DummyDenoiser(), EngineSettings(plan, shifted(8, 3.0), policy=policy), noise(plan), observe=look)
    assert told == [chunk.index for chunk in plan.chunks] and held() == set()


@pytest.mark.parametrize("guidance", [2.0, 7.5])
def test_guidance_goes_from_the_second_prompt_towards_the_first(transformer, guidance):
    """By hand, and on the model: where both prompts are the second one, nothing of the first is left to go towards."""
    denoiser = wan(transformer, guidance)
    cond, uncond = torch.tensor([[[3.0]]]), torch.tensor([[[1.0]]])
    assert denoiser.guide(torch.stack([cond, uncond]), None).item() == pytest.approx(1.0 + guidance * 2.0)
    plan = blockwise(3, 3, 1)
    text, null = denoiser.prompts[0]

    def alone(prompt):
        return run(WanDenoiser(transformer, {0: [prompt]}), plan)[0]

    expected = alone(null) + guidance * (alone(text) - alone(null))  # one Euler step is linear in the velocity
    assert torch.allclose(run(denoiser, plan)[0], expected, atol=1e-4)
    assert not torch.allclose(alone(text), alone(null), atol=1e-3)


@pytest.mark.parametrize("chunk", [1, 2])
def test_a_chunk_stands_at_its_own_frames_of_the_video(transformer, chunk):
    """Behind clean chunks in the cache a chunk gets the velocity that one forward over the whole video gives it."""
    plan, denoiser = blockwise(9, 3, 4), wan(transformer, 1.0)
    latents, timestep = noise(plan), 640.0
    cache = KVCache(denoiser.kv_spec(latents), KVSettings(), plan)
    for one in plan.chunks[: chunk + 1]:
        cache.begin(one)
        time = timestep if one.index == chunk else 0.0
        item = ChunkInput(one, 0, time / 1000, time, latents[:, :, one.first_frame : one.end_frame])
        found = denoiser.compute(item, cache).velocity[0]
        if one.index < chunk:
            cache.commit(one)
    end = plan.chunks[chunk].end_frame
    times = torch.tensor([[0.0] * (end - 3) + [timestep] * 3])
    text = denoiser.prompts[0][0]
    whole = transformer(latents[:, :, :end], times, text, chunk_frames=(3,) * (chunk + 1))
    assert torch.allclose(found, whole[:, :, end - 3 :], atol=1e-4)
