"""Reuse in the host's own AR sampler."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from host_ar_runs import (
    LONG,
    TOKENS,
    Forwards,
    Watch,
    build,
    chunkwise,
    errors,
    kv,
    outer,
    presets,
    reuse,
    settings,
    skipping,
    with_kv,
    with_reuse,
)
from hostkit import (
    hosts,
    latent,
    load,
    module,
    node,
    ours,
    sample,
    sigmas_of,
)


@pytest.fixture(scope="module")
def model():
    return load()


def test_reuse_skips_the_model_and_never_the_clean_pass(model):
    for computed, per_chunk in (((0,), 1), ((0, 2), 2), ((0, 1, 2, 3), 4)):
        with Forwards(model) as forwards:
            sample(with_reuse(model, skipping(*computed)), hosts())
        assert forwards.clean == 2
        assert len(forwards.timesteps) == 2 * (per_chunk + 1)


def test_every_call_moves_the_cursor_as_a_computed_one(model):
    expected, watch = Watch(model), Watch(with_reuse(model, skipping(0, 2)))
    sample(expected.model, hosts())
    sample(watch.model, hosts())
    ends = [[(c["end_before"], c["end_after"]) for c in w.calls] for w in (expected, watch)]
    assert ends[0] == ends[1]
    assert ends[0][0] == ([0, 0], [3 * TOKENS] * 2)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_reused_step_is_the_last_velocity_at_the_current_noise_level(model, batch):
    watch = Watch(with_reuse(model, skipping(0, 1)))
    out = sample(watch.model, hosts(), start=latent(batch=batch))[0]
    assert out.shape[0] == batch and out.isfinite().all()
    for chunk in range(2):
        computed, first, second = watch.calls[chunk * 5 + 1 : chunk * 5 + 4]
        velocity = (computed["x"] - computed["out"]).double() / computed["sigma"]
        for reused in (first, second):
            expected = reused["x"].double() - reused["sigma"] * velocity
            torch.testing.assert_close(reused["out"].double(), expected, atol=1e-5, rtol=0)
            assert not torch.equal(reused["out"], computed["out"])


def test_increment_repeats_the_change_of_the_latents(model):
    watch = Watch(with_reuse(model, skipping(0, 1, 3), reuse.QUANTITIES["increment"]()))
    sample(watch.model, hosts())
    _, computed, reused, following, _ = watch.calls[:5]
    increment = (reused["x"] - computed["x"]).double()
    step = following["sigma"] - reused["sigma"]
    expected = reused["x"].double() - reused["sigma"] * increment / step
    torch.testing.assert_close(reused["out"].double(), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("distance", ["latent", "patch", "time"])
def test_distances_decide_and_are_recorded(model, distance):
    patched = with_reuse(model, chunkwise(1e6, distance=reuse.DISTANCES[distance]()))
    with Forwards(model) as forwards:
        sample(patched, hosts())
    record = settings.last_record(patched)
    assert record.kinds == [["warm-up", "reused", "reused", "forced"]] * 2
    assert len(forwards.timesteps) == record.computed_steps + len(record.cache_passes) == 6
    assert all(step.distance > 0 for step in record.steps_taken if step.action == "reuse")


def test_latent_distance_is_relative_l1_of_consecutive_noisy_latents(model):
    patched = with_reuse(model, chunkwise(1e-3))
    watch = Watch(patched)
    sample(watch.model, hosts())
    steps = settings.last_record(patched).steps_taken
    before, now = (watch.calls[i]["x"].double() for i in (1, 2))
    assert steps[2].distance == pytest.approx(float((now - before).abs().sum() / before.abs().sum()), rel=1e-5)
    assert steps[2].action == "compute"


def test_same_as_our_sampler(model):
    """The same settings through the core's engine give the same video."""
    for patched in (
        with_reuse(model, skipping(0, 2)),
        with_kv(model, 1.5),
        with_kv(with_reuse(model, skipping(0, 1)), 1.0, kv.COMPRESSORS["sink-window"](sink=0.0)),
        with_kv(model, (1.3, 2.2), kv.COMPRESSORS["importance-redundancy"](mix_lambda=0.5, key_granularity="frame")),
        with_kv(model, 1.7, kv.COMPRESSORS["importance-redundancy"](mix_lambda=0.5, key_granularity="chunk")),
    ):
        video = latent(LONG)
        theirs, mine = sample(patched, hosts(), start=video)[0], sample(patched, ours(), start=video)[0]
        torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=1e-5)


# Short gaps and even sigmas: a polynomial carried far enlarges the last bits in which the two samplers differ.
POLICIES = {
    "chunkwise": {"threshold": 3.0, "warmup_steps": 2, "max_reuses": 2},
    "teacache": {"threshold": 0.9, "warmup_steps": 2},
    "easycache": {"threshold": 3.0, "warmup_steps": 2, "max_reuses": 2},
    "magcache": {"threshold": 0.3, "curve": (1.0, 0.98, 0.96, 0.97, 0.95, 0.93, 0.9, 0.8), "warmup_steps": 2},
    "interval": {"interval": 3, "warmup_steps": 1},
    "schedule": {"computed": (0, 1, 3, 6), "first": (0, 1, 2, 4, 6), "together": True, "always_last": False},
    "front-loaded": {"first_share": 0.6, "share": 0.4},
    "published": {},
    "never": {"warmup_steps": 1},
}
BY_TOKEN = ("motion", "partial schedule")
"""Compute some tokens of a step, which the host's own sampler cannot."""
QUANTITIES = (
    "velocity",
    "increment",
    "forecast",
    {"name": "forecast", "order": 2, "correction": 4},
    {"name": "forecast", "order": 2, "correction": 0, "damping": 0.7},
    "taylor",
    {"name": "taylor", "order": 2},
    "barycentric",
    "chebyshev",
    "offset",
)


def same_in_both_samplers(patched, sigmas):
    """Decisions and latents of the host's sampler are those of ours."""
    video = latent(33)
    made, records = [], []
    for sampler in (hosts(), ours()):
        made.append(sample(patched, sampler, start=video, sigmas=sigmas)[0])
        records.append(settings.last_record(patched))
    torch.testing.assert_close(made[0], made[1], atol=1e-5, rtol=1e-5)
    assert records[0].kinds == records[1].kinds and len(records[0].kinds) == 3
    return records[0]


def test_rows_name_every_policy_and_every_quantity():
    assert {*POLICIES, *BY_TOKEN, "motion reference"} == {*reuse.POLICIES}
    assert {name if isinstance(name, str) else name["name"] for name in QUANTITIES} == {
        name for name, kind in reuse.QUANTITIES.items() if not kind.needs_residual
    }


@pytest.mark.parametrize("quantity", QUANTITIES, ids=str)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_with_every_quantity(model, policy, quantity):
    chosen = with_reuse(model, build.build_policy({"name": policy, **POLICIES[policy]}), build.build_quantity(quantity))
    record = same_in_both_samplers(chosen, torch.linspace(1, 0, 9))
    assert (record.reused_steps > 0) == (policy != "never")


@pytest.mark.parametrize("policy", BY_TOKEN)
def test_policies_by_token_are_refused_in_the_hosts_sampler(model, policy):
    partly = {"partial": (2,)} if policy == "partial schedule" else {"threshold": 0.3}
    made = build.build_policy({"name": policy, **partly, "warmup_steps": 1})
    with pytest.raises(errors.SettingError, match="AR Video Sampler"):
        sample(with_reuse(model, made, build.build_quantity("velocity")), hosts(), start=latent(33))


@pytest.mark.parametrize("name", module("nodes.reuse").preset_rows())
def test_every_preset_of_the_node(name):
    row = presets.load_preset(*module("nodes.reuse").preset_rows()[name])
    made_for = {"steps": 10, "shift": 5.0} | (row.requires or {})
    model = load(shift=made_for["shift"])
    if row.architecture:  # a preset that knows its model is for that one only
        with pytest.raises(errors.SettingError, match=f"a model wan, .*{row.architecture}"):
            sample(node("ChunkwiseReuse", model=model, preset={"preset": name}), hosts())
        return
    patched, sigmas = node("ChunkwiseReuse", model=model, preset={"preset": name}), sigmas_of(model, made_for["steps"])
    if row.quantity.needs_residual or row.policy.parts != "never":
        with pytest.raises(errors.SettingError, match=r"AR Video Sampler"):
            sample(patched, hosts(), sigmas=sigmas)
        return
    record = same_in_both_samplers(patched, sigmas)
    if row.requires:
        assert record.reused_steps > 0


def test_finished_chunks_are_dropped_by_the_policy(model, monkeypatch):
    state, finished, held = module("nodes.adapters.host_ar.reuse").StepReuse, [], []
    original = state.finish

    def spy(self, chunk):
        held.append(len(self.policy.chunks))
        original(self, chunk)
        finished.append((chunk.index, len(self.policy.chunks), len(self.history)))

    monkeypatch.setattr(state, "finish", spy)
    sample(with_reuse(model, chunkwise(0.5)), hosts(), start=latent(LONG))
    assert finished == [(index, 0, 0) for index in range(4)] and held == [1] * 4


def test_what_is_reused_waits_on_the_device_that_was_chosen(model):
    seen = []

    @dataclass(frozen=True)
    class Watching(reuse.QUANTITIES["velocity"]):
        def velocity(self, history, item, sigma_next, denoiser):
            last = history[-1]
            seen.append({tensor.device.type for tensor in (last.velocity, last.increment, last.item.latents)})
            return torch.zeros(1, *item.latents.shape)

    for sampler in (hosts(), ours()):
        for device in ("meta", None):
            chosen = settings.ReuseSettings(skipping(0, 1), Watching(), device=device)
            sample(outer.with_reuse(model, chosen), sampler)
    assert seen == ([{"meta"}] * 4 + [{"cpu"}] * 4) * 2


@pytest.mark.parametrize("sampler", [hosts, ours])
def test_a_preset_of_another_shift_is_refused(sampler):
    """The shift is read off the sigmas: those of "simple" are even, others do not tell."""
    preset = module("flowcache_core.presets").Preset
    policy, velocity = reuse.POLICIES["schedule"](computed=(0, 2, 3)), reuse.QUANTITIES["velocity"]()
    model = load(shift=5.0)
    for shift, steps, message in ((5.0, 4, None), (8.0, 4, "4 steps at shift 5"), (5.0, 8, "4 steps")):
        source = preset("mini", "fast", "Text.", policy, velocity, requires={"steps": steps, "shift": shift})
        patched = outer.with_reuse(model, settings.ReuseSettings(policy, velocity, "mini: fast", source=source))
        if message is None:
            assert sample(patched, sampler())[0].isfinite().all()
        else:
            with pytest.raises(errors.SettingError, match=rf"Chunkwise Reuse, preset mini: fast: got '{message}"):
                sample(patched, sampler())
    beta = torch.tensor([1.0, 0.97, 0.5, 0.31, 0.0])
    source = preset("mini", "fast", "Text.", policy, velocity, requires={"steps": 4, "shift": 8.0})
    patched = outer.with_reuse(model, settings.ReuseSettings(policy, velocity, "mini: fast", source=source))
    assert sample(patched, sampler(), sigmas=beta)[0].isfinite().all()
