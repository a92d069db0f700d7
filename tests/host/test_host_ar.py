"""The patch nodes with the host's own AR sampler: what they change, and that they change nothing else."""

from __future__ import annotations

import gc
import logging
import weakref
from dataclasses import dataclass

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.ldm.flux.math import apply_rope1
from comfy.patcher_extension import WrappersMP
from comfy_extras.nodes_ar_video import SamplerARVideo
from comfy_extras.nodes_custom_sampler import SplitSigmas
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from hostkit import (
    CUSTOM,
    HEIGHT,
    SAME,
    WIDTH,
    close,
    hosts,
    latent,
    load,
    module,
    node,
    ours,
    prompt,
    sample,
    sigmas_of,
)
from torch.nn import functional

settings = module("nodes.adapters.run.settings")
outer = module("nodes.adapters.run.outer")
errors = module("flowcache_core.errors")
reuse = module("flowcache_core.reuse")
build = module("flowcache_core.reuse.build")
presets = module("flowcache_core.presets")
kv = module("flowcache_core.kv")
KVSettings = module("flowcache_core.kv.settings").KVSettings
host_ar = module("nodes.adapters.host_ar.attach")

FRAMES = 6  # latent frames of hostkit's default length: two chunks of 3
TOKENS = (WIDTH // 16) * (HEIGHT // 16)  # per latent frame
LONG = 45  # 12 latent frames


@pytest.fixture(scope="module")
def model():
    return load()


def with_reuse(model, policy, quantity=None):
    return outer.with_reuse(model, settings.ReuseSettings(policy, quantity or reuse.QUANTITIES["velocity"]()))


def with_kv(model, budget, compressor=None, **fields):
    return outer.with_kv(model, KVSettings(budget, compressor, **fields))


def skipping(*computed, **fields):
    """Computes exactly these own steps of every chunk."""
    return reuse.POLICIES["schedule"](computed=computed, always_last=False, **fields)


def chunkwise(threshold, **fields):
    return reuse.POLICIES["chunkwise"](threshold=threshold, warmup_steps=1, **fields)


class Watch:
    """Every APPLY_MODEL call of a run: noise level, first frame, latents in and out, and the K/V around it."""

    def __init__(self, model, keep_kv=False):
        self.model, self.keep_kv, self.calls = model.clone(), keep_kv, []
        self.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "watch", self)

    def __call__(self, executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        state = transformer_options["ar_state"]
        caches = state["kv_caches"]
        call = {"sigma": float(t[0]), "start": state["start_frame"], "x": x.clone()}
        call["end_before"] = [cache["end"] for cache in caches]
        call["allocated"] = [cache["k"].shape[1] for cache in caches]
        call["before"] = [{n: c[n].clone() for n in "kv"} for c in caches] if self.keep_kv else []
        out = executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)
        call["end_after"] = [cache["end"] for cache in caches]
        call["after"] = [{n: c[n].clone() for n in "kv"} for c in caches] if self.keep_kv else []
        self.calls.append({**call, "out": out.clone()})
        return out


class Forwards:
    """Counts calls of the diffusion model itself, by noise level."""

    def __init__(self, model):
        self.transformer, self.timesteps = model.model.diffusion_model, []

    def __enter__(self):
        self.hook = self.transformer.register_forward_pre_hook(lambda _, args: self.timesteps.append(float(args[1][0])))
        return self

    def __exit__(self, *exc):
        self.hook.remove()

    @property
    def clean(self):
        return sum(t == 0 for t in self.timesteps)


# -- nothing asked, nothing changed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [21, 25, 29], ids=["two chunks", "remainder 1", "remainder 2"])
def test_threshold_0_and_whole_budget_are_the_host(model, length):
    video = latent(length)
    plain = sample(model, hosts(), start=video)
    frames = (length - 1) // 4 + 1
    for patched in (
        with_reuse(model, chunkwise(0.0)),
        with_reuse(model, chunkwise(0.0, distance=reuse.DISTANCES["patch"]())),
        with_reuse(model, chunkwise(0.0, distance=reuse.DISTANCES["time"]())),
        with_kv(model, frames / 3),
        with_kv(model, 1000.0),
        with_kv(with_reuse(model, chunkwise(0.0)), 1000.0),
    ):
        for mine, theirs in zip(sample(patched, hosts(), start=video), plain):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("sampler", [hosts, ours], ids=["host", "own"])
def test_the_very_last_tick_is_computed_where_it_is_asked_for(model, sampler):
    for fields, ends in (({}, ["reuse", "reuse"]), ({"last_tick": True}, ["reuse", "compute"])):
        patched = with_reuse(model, skipping(0, **fields))
        sample(patched, sampler(), start=latent())
        steps = settings.last_record(patched).steps_taken
        last = max(one.step for one in steps)
        assert [one.action for one in steps if one.step == last] == ends


def test_optional_fields_that_a_workflow_lacks(model):
    """The host hands None over for them."""
    lacking = {**CUSTOM, "policy": "schedule", "first_chunk_steps": None, "last_tick": None}
    patched = node("ChunkwiseReuse", model=model, preset=lacking)
    policy = patched.model_options["flowcache"].reuse.policy
    assert (policy.first, policy.last_tick) == ((), False)


def methods(model):
    """Every method on the model that was put there by hand."""
    transformer = model.model.diffusion_model
    modules = {"": transformer, **{f"blocks.{i}": block for i, block in enumerate(transformer.blocks)}}
    modules |= {f"blocks.{i}.attn": block.self_attn for i, block in enumerate(transformer.blocks)}
    return {f"{name}.{key}" for name, m in modules.items() for key, value in vars(m).items() if callable(value)}


def test_nothing_left_behind(model):
    plain, before = sample(model, hosts(1), start=latent(LONG))[0], methods(model)
    patched = with_kv(with_reuse(model, skipping(0, 2)), 2.0)
    options = {key: list(value) for key, value in patched.wrappers.items() if value}
    changed = sample(patched, hosts(1), start=latent(LONG))[0]
    assert not torch.equal(changed, plain)
    assert methods(model) == before
    assert {key: list(value) for key, value in patched.wrappers.items() if value} == options
    assert patched.object_patches == model.object_patches
    assert "wrappers" not in patched.model_options["transformer_options"]
    assert torch.equal(sample(model, hosts(1), start=latent(LONG))[0], plain)
    assert torch.equal(sample(patched, hosts(1), start=latent(LONG))[0], changed)


def test_marker_of_our_sampler_and_of_the_host():
    assert host_ar.is_host_ar(hosts()) and not host_ar.is_host_ar(ours())
    assert not host_ar.is_host_ar(comfy.samplers.ksampler("euler"))
    assert host_ar.OUR_SAMPLER == module("nodes.samplers").NAME
    assert host_ar.HOST_SAMPLER == SamplerARVideo.GET_SCHEMA().display_name


# -- reuse -------------------------------------------------------------------------------------------------------------


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


# -- K/V budget --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(kv.COMPRESSORS))
def test_allocates_budget_and_one_chunk(model, name):
    if kv.COMPRESSORS[name].merges:
        with pytest.raises(errors.SettingError, match=r"method: got 'merge'.*AR Video Sampler \(FlowCache\)"):
            sample(with_kv(model, 2.0, kv.COMPRESSORS[name]()), hosts(), start=latent(161))
        return
    ends = {"sink": 0.5, "recent": 0.5}
    fields = {key: ends[key] for key in ends if key in kv.COMPRESSORS[name].__dataclass_fields__}
    patched = with_kv(model, 1.5, kv.COMPRESSORS[name](**fields))
    watch = Watch(patched)
    out = sample(watch.model, hosts(), start=latent(161))[0]  # 41 latent frames, the last chunk has 2
    assert out.shape[2] == 41 and out.isfinite().all()
    capacity = round(2.5 * 3 * TOKENS)
    assert all(call["allocated"] == [capacity] * 2 for call in watch.calls)
    assert max(max(call["end_after"]) for call in watch.calls) == capacity
    record = settings.last_record(patched)
    rows = kv.COMPRESSORS[name](**fields).query_rows(3 * TOKENS, TOKENS)
    per_layer = 2 * capacity * 24 * 4 + 2 * capacity * 4 + rows * 24 * 4  # K and V, positions of 2 heads, queries
    assert record.kv_bytes == 2 * per_layer
    assert record.started.budget_tokens == round(1.5 * 3 * TOKENS)
    assert [(c.tokens_before, c.tokens_after) for c in record.compressions][:2] == [(48, 36), (60, 36)]
    assert len(record.compressions) == 12


def test_positions_follow_their_tokens_through_every_compression():
    """Keys say where they are from; after any number of compressions the positions kept beside them say the same."""
    spec = module("flowcache_core.kv.spec").KVSpec(2, 2, 4, tokens_per_frame=3, branches=1, batch=2)
    plan = host_ar.plan_of(18, 3, 2, 0)
    host = module("nodes.adapters.host_ar.kv").HostKV(spec, KVSettings(1.5, kv.COMPRESSORS["random"]()), plan)
    caches = [{n: torch.zeros(2, host.capacity_tokens, 2, 4) for n in "kv"} | {"end": 0} for _ in range(2)]
    compressed = 0
    for chunk in plan.chunks:
        compressed += host.begin(chunk, caches) is not None
        for layer, cache in zip(host.layers, caches, strict=True):
            first, end = layer.layout.span(chunk.index)
            cache["k"][:, first:end] = torch.arange(9.0).view(9, 1, 1) + 9 * chunk.index
        host.commit(chunk, caches)
        for layer, cache in zip(host.layers, caches, strict=True):
            clean = layer.layout.clean_tokens
            assert torch.equal(layer.positions[..., :clean], cache["k"][:, :clean, :, 0].transpose(1, 2).int())
    assert compressed == 4


STORED = module("flowcache_core.kv.storage").STORAGES


@pytest.mark.parametrize("storage", ["int8", "int4", "int2", "centroid"])
def test_packed_kv_in_the_host_s_sampler_is_that_of_ours(model, storage):
    """The same blocks, solver and clean pass: what is packed and unpacked is the same, so the videos are."""
    packed = with_kv(model, 1.5, kv.COMPRESSORS["importance-redundancy"](), storage=STORED[storage]())
    theirs, record = sample(packed, hosts(), start=latent(LONG))[0], settings.last_record(packed)
    own = with_kv(model, 1.5, kv.COMPRESSORS["importance-redundancy"](), storage=STORED[storage]())
    mine = sample(own, ours(), start=latent(LONG))[0]
    plain = sample(with_kv(model, 1.5, kv.COMPRESSORS["importance-redundancy"]()), hosts(), start=latent(LONG))[0]
    assert theirs.isfinite().all() and not torch.equal(theirs, plain)
    error = (theirs - plain).square().mean() / plain.square().mean()
    assert 0 < error < (1e-3 if storage == "int8" else 0.5)
    assert record.kv_bytes == settings.last_record(own).kv_bytes and len(record.compressions) == 2
    close(theirs, mine, 1e-3)


@pytest.mark.parametrize("fields", [{"dtype": torch.float16}, {"dtype": torch.bfloat16}])
def test_another_number_format_in_the_host_s_sampler(model, fields):
    """Without a compression the history is the same: only its rounding differs."""
    whole = sample(model, hosts(), start=latent(LONG))[0]
    rounded = sample(with_kv(model, None, **fields), hosts(), start=latent(LONG))[0]
    error = (rounded - whole).square().mean() / whole.square().mean()
    assert 0 < error < 1e-3


def test_settled_tokens_and_drops_at_a_chunk_s_end_in_the_host_s_sampler(model):
    for storage in ("plain", "int8"):
        patched = with_kv(model, 2.0, kv.COMPRESSORS["settled"](), storage=STORED[storage](), at_finish=True)
        assert sample(patched, hosts(), start=latent(LONG))[0].isfinite().all()
        seen = [(one.tokens_before, one.tokens_after) for one in settings.last_record(patched).compressions]
        assert seen == [(3 * 3 * TOKENS, 2 * 3 * TOKENS)]


def test_merged_tokens_are_for_the_other_sampler(model):
    with pytest.raises(errors.SettingError, match="method: got 'merge', accepted: another"):
        sample(with_kv(model, 2.0, kv.COMPRESSORS["merge"]()), hosts(), start=latent(LONG))


def test_budget_per_layer(model):
    watch = Watch(with_kv(model, (1.0, 3.0)))
    sample(watch.model, hosts(), start=latent(LONG))
    assert watch.calls[0]["allocated"] == [2 * 3 * TOKENS, 4 * 3 * TOKENS]


def naive_scores(keys, queries, mix_lambda, kernel):
    """Eq. 9-12 for one head, written out: keys [L, d], queries [n, d]."""
    unit = keys / keys.norm(dim=-1, keepdim=True)
    similar = unit @ unit.T
    similar.fill_diagonal_(0)
    redundancy = torch.softmax(similar.sum(0) / len(keys), -1)
    attention = torch.softmax(queries @ keys.T / keys.shape[-1] ** 0.5, -1).mean(0)
    padded = functional.pad(attention, (kernel // 2, kernel // 2), value=float("-inf"))
    importance = torch.stack([window.max() for window in padded.unfold(0, kernel, 1)])
    return mix_lambda * importance - (1 - mix_lambda) * redundancy


@pytest.mark.parametrize("batch", [1, 2])
def test_every_head_keeps_its_own_best_tokens(model, batch):
    """Layer 1, first compression, against a re-computation from the K/V and the inputs of the self-attention."""
    seen = []
    attention = model.model.diffusion_model.blocks[1].self_attn
    hook = attention.register_forward_pre_hook(lambda _, args: seen.append((args[0].clone(), args[1].clone())))
    compressor = kv.COMPRESSORS["importance-redundancy"](mix_lambda=0.6, pool_kernel=3, query_granularity="frame")
    watch = Watch(with_kv(model, 1.25, compressor), keep_kv=True)
    try:
        sample(watch.model, hosts(), start=latent(33, batch))
    finally:
        hook.remove()
    index = 10  # first call of the third chunk; the call before is the second one's clean pass
    first, clean = watch.calls[index], watch.calls[index - 1]
    assert first["start"] == 6 and clean["sigma"] == 0
    before, after = 2 * 3 * TOKENS, round(1.25 * 3 * TOKENS)
    x, freqs = seen[index - 1]
    rows = slice(-TOKENS, None)
    with torch.inference_mode():
        q = attention.norm_q(attention.q(x[:, rows])).view(batch, TOKENS, 2, 12)
        queries = apply_rope1(q, freqs[:, rows])
        kept = set()
        for item in range(batch):
            for head in range(2):
                old = {n: first["before"][1][n][item, :before, head].double() for n in "kv"}
                scores = naive_scores(old["k"], queries[item, :, head].double(), 0.6, 3)
                best = sorted(sorted(range(before), key=lambda i: -scores[i])[:after])
                for name in "kv":
                    new = first["after"][1][name][item, :after, head].double()
                    assert torch.equal(new, old[name][best])
                kept.add(tuple(best))
    assert len(kept) == 2 * batch  # heads differ, so this is not a common selection


def test_queries_matter(model):
    """Without queries importance would be the same everywhere, so the two ways to sample them would agree."""
    videos = [
        sample(
            with_kv(model, 1.0, kv.COMPRESSORS["importance-redundancy"](mix_lambda=1.0, query_granularity=g)),
            hosts(),
            start=latent(LONG),
        )[0]
        for g in ("frame", "chunk")
    ]
    assert not torch.equal(*videos)


def test_fp8_weights_keep_kv_in_the_dtype_that_computes():
    model = load(dtype=torch.float8_e4m3fn)
    assert model.model.get_dtype() == torch.float8_e4m3fn
    dtypes = set()
    patched = with_kv(model, 1.0)
    watch = Watch(patched, keep_kv=True)
    out = sample(watch.model, hosts(), start=latent(LONG))[0]
    for call in watch.calls:
        dtypes |= {layer["k"].dtype for layer in call["after"]}
    assert dtypes == {model.model.get_dtype_inference()} and out.isfinite().all()


def test_memory_told_to_the_host(model, monkeypatch):
    """What the host estimates before loading: a chunk's activations and the K/V, whatever the video's length."""
    base, original, shapes = model.model, model.model.memory_required, []
    frame = original([1, 16, 1, HEIGHT // 8, WIDTH // 8])

    def estimated(patched, length):
        shapes.clear()
        sample(patched, hosts(), start=latent(length))
        return max(original(shape) for shape in shapes if shape[0] == 1)

    monkeypatch.setattr(base, "memory_required", lambda s, **kw: (shapes.append(list(s)), original(s, **kw))[1])
    kv_bytes = 2 * 2 * (2 * 3 * TOKENS) * (24 * 4 + 4)  # K and V, layers, tokens, width, positions
    wanted = 3 * frame + kv_bytes
    assert wanted <= estimated(with_kv(model, 1.0), LONG) < wanted + frame
    assert wanted <= estimated(with_kv(model, 1.0), 401) < wanted + frame


# -- the host's other ways in ------------------------------------------------------------------------------------------


def start_image(model, frames=1):
    clone = model.clone()
    image = torch.randn(1, 16, frames, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(3))
    clone.model_options.setdefault("transformer_options", {})["ar_config"] = {"initial_latent": image}
    return clone


@pytest.mark.parametrize("block", [1, 3])
def test_start_image(model, block):
    video = latent(37)  # 10 latent frames: the image and whole chunks of 3
    given = start_image(model)
    plain = sample(given, hosts(block), start=video)[0]
    for inert in (with_kv(given, 100.0), with_reuse(given, chunkwise(0.0))):
        assert torch.equal(sample(inert, hosts(block), start=video)[0], plain)
    patched = with_kv(with_reuse(given, skipping(0, 2)), 1.0)
    watch = Watch(patched)
    out = sample(watch.model, hosts(block), start=video)[0]
    assert torch.equal(out[:, :, 0], plain[:, :, 0]) and out.isfinite().all()
    record = settings.last_record(patched)
    assert [p.kind for p in record.cache_passes] == ["prefix"] + ["clean"] * (9 // block)
    assert record.kinds[0] == ["given"] * 4
    assert record.kinds[1] == ["warm-up", "reused", "computed", "reused"]
    assert all(call["allocated"] == [2 * block * TOKENS] * 2 for call in watch.calls)


def test_start_image_as_in_our_sampler(model):
    video, patched = latent(37), with_kv(start_image(model), 2.0)
    theirs, mine = sample(patched, hosts(), start=video)[0], sample(patched, ours(), start=video)[0]
    torch.testing.assert_close(theirs, mine, atol=1e-5, rtol=1e-5)


def test_one_step_and_one_chunk(model):
    patched = with_kv(model, 1.0)
    for video, steps in ((latent(9), 4), (latent(LONG), 1)):
        out = sample(patched, hosts(), start=video, sigmas=sigmas_of(model, steps))[0]
        assert out.isfinite().all()
        if video["samples"].shape[2] == 3:
            assert torch.equal(out, sample(model, hosts(), start=video)[0])


def test_same_seed_same_video_and_another_seed_another(model):
    patched = with_kv(with_reuse(model, chunkwise(0.5)), 1.0, kv.COMPRESSORS["random"]())
    first, second, other = (sample(patched, hosts(), start=latent(LONG), seed=seed)[0] for seed in (5, 5, 6))
    assert torch.equal(first, second) and not torch.equal(first, other)


# -- errors and warnings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [2, 3], ids=["batched with the prompt", "called on its own"])
def test_cfg_names_our_sampler(model, tokens):
    with pytest.raises(errors.SettingError, match=r"Sampler AR Video, cfg: got 3.0.*AR Video Sampler \(FlowCache\)"):
        sample(with_kv(model, 2.0), hosts(), negative=prompt(8, tokens))


@pytest.mark.parametrize("tokens", [2, 3])
def test_several_conditionings_name_our_sampler(model, tokens):
    both = prompt() + prompt(8, tokens)
    for patched in (with_kv(model, 1.0), with_reuse(model, skipping(0))):
        with pytest.raises(errors.SettingError, match=r"conditioning.*AR Video Sampler \(FlowCache\)"):
            sample(patched, hosts(), positive=both)


def test_cfg_1_with_a_negative_prompt_runs(model):
    plain = sample(model, hosts(), negative=prompt(8), cfg=1.0)[0]
    assert torch.equal(sample(with_kv(model, 50.0), hosts(), negative=prompt(8), cfg=1.0)[0], plain)


@pytest.mark.parametrize("first", [True, False], ids=["before ours", "after ours"])
@pytest.mark.parametrize("cache", [EasyCacheNode, LazyCacheNode])
def test_other_caches_are_refused(model, cache, first):
    with pytest.raises(errors.SettingError, match=f"remove the {cache.__name__.removesuffix('Node')}"):
        base = cache.execute(model, 0.2, 0.15, 0.95, False).args[0] if first else model
        patched = with_reuse(base, chunkwise(0.1))
        patched = patched if first else cache.execute(patched, 0.2, 0.15, 0.95, False).args[0]
        sample(patched, hosts())


def test_what_the_host_sampler_cannot_do(model):
    cases = (
        (with_reuse(model, skipping(0), reuse.QUANTITIES["residual"]()), "Chunkwise Reuse, reused quantity"),
        (with_kv(load(causal=False), 1.0), "model: got 'WanModel'"),
        (with_reuse(model, skipping(0, 9)), "Chunkwise Reuse, computed_steps"),
        (with_kv(model, (1.0, 1.0, 1.0)), "KV Cache Compressor, budget"),
    )
    for patched, message in cases:
        with pytest.raises(errors.SettingError, match=message):
            sample(patched, hosts())
    high, _ = SplitSigmas.execute(sigmas_of(model), 2).args
    with pytest.raises(errors.SettingError, match=r"sigmas.*AR Video Sampler \(FlowCache\)"):
        sample(with_kv(model, 1.0), hosts(), sigmas=high)
    masked = {**latent(), "noise_mask": torch.ones(1, 1, FRAMES, HEIGHT // 8, WIDTH // 8)}
    with pytest.raises(errors.SettingError, match=r"noise mask.*AR Video Sampler \(FlowCache\)"):
        sample(with_kv(model, 1.0), hosts(), start=masked)


def test_other_samplers_get_one_warning_and_no_change(caplog):
    model = load(causal=False)
    euler = comfy.samplers.ksampler("euler")
    plain = sample(model, euler)
    patched = with_kv(with_reuse(model, chunkwise(0.5)), 1.0)
    with caplog.at_level(logging.WARNING):
        changed = sample(patched, euler)
    told = [r.getMessage() for r in caplog.records if "no effect" in r.getMessage()]
    assert told == [
        "FlowCache Chunkwise Reuse and KV Cache Compressor: no effect with this sampler; "
        "use AR Video Sampler (FlowCache) or Sampler AR Video"
    ]
    assert all(torch.equal(a, b) for a, b in zip(plain, changed))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        sample(outer.with_slot(model.clone()), euler)
    assert not [r for r in caplog.records if "no effect" in r.getMessage()]


def test_settings_that_cannot_help_say_so(model, caplog):
    with caplog.at_level(logging.WARNING):
        sample(with_kv(model, 50.0), hosts())
    assert [r.getMessage() for r in caplog.records if "nothing to compress" in r.getMessage()] == [
        "FlowCache: budget 50 chunks is not below the 1 finished chunks this video ever has to hold: "
        "nothing to compress"
    ]


# -- interrupts --------------------------------------------------------------------------------------------------------


class Broken:
    """Fails at the ``number``-th model call, inside or around it."""

    def __init__(self, model, number, error):
        self.model, self.number, self.error, self.calls = model.clone(), number, error, 0
        self.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "broken", self)

    def __call__(self, executor, *args, **kwargs):
        out = executor(*args, **kwargs)
        self.calls += 1
        if self.calls == self.number:
            raise self.error
        return out


def test_after_an_error_or_an_interrupt_a_run_is_as_fresh(model):
    patched = with_kv(with_reuse(model, skipping(0, 2)), 1.0)
    video, before = latent(LONG), methods(model)
    fresh, plain = sample(patched, hosts(), start=video)[0], sample(model, hosts(), start=video)[0]
    interrupt = comfy.model_management.InterruptProcessingException()
    for number, error in ((1, RuntimeError("broken")), (3, interrupt), (5, interrupt), (13, RuntimeError("broken"))):
        with pytest.raises(type(error)):
            sample(Broken(patched, number, error).model, hosts(), start=video)
        assert methods(model) == before
        record = settings.last_record(patched)
        assert record.seconds is None and len(record.steps_taken) + len(record.cache_passes) == number
        assert torch.equal(sample(patched, hosts(), start=video)[0], fresh)
        assert torch.equal(sample(model, hosts(), start=video)[0], plain)


def test_an_interrupt_during_the_clean_pass_leaves_no_listener(model):
    patched, before = with_kv(model, 1.0, kv.COMPRESSORS["importance-redundancy"]()), methods(model)
    calls = []

    def fail(module, args):
        calls.append(methods(model) - before)
        if len(calls) == 5:
            raise comfy.model_management.InterruptProcessingException()

    hook = model.model.diffusion_model.blocks[1].ffn.register_forward_pre_hook(fail)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sample(patched, hosts(), start=latent(LONG))
    finally:
        hook.remove()
    assert {"blocks.0.forward", "blocks.1.forward"} <= calls[4] - calls[3]
    assert methods(model) == before


def test_a_reused_step_notices_an_interrupt(model):
    patched = Broken(with_reuse(model, skipping(0)), -1, RuntimeError())

    def press(executor, *args, **kwargs):
        out = executor(*args, **kwargs)
        comfy.model_management.interrupt_current_processing(True)
        return out

    patched.model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "press", press)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            sample(patched.model, hosts())
    finally:
        comfy.model_management.interrupt_current_processing(False)
    assert patched.calls == 1


@pytest.mark.parametrize("fails", [False, True])
def test_no_tensor_of_a_run_outlives_it(model, monkeypatch, fails):
    runs, kept = [], []
    make, begin = host_ar.HostRun.of, host_ar.HostRun.told
    monkeypatch.setattr(host_ar.HostRun, "of", lambda *args: runs.append(weakref.ref(run := make(*args))) or run)

    def watched(self, act, chunk, caches, tick):
        kept.extend(weakref.ref(cache["k"]) for cache in caches)
        return begin(self, act, chunk, caches, tick)

    monkeypatch.setattr(host_ar.HostRun, "told", watched)
    patched = with_kv(with_reuse(model, chunkwise(0.5)), 1.0)
    if fails:
        with pytest.raises(RuntimeError):
            sample(Broken(patched, 12, RuntimeError("broken")).model, hosts(), start=latent(LONG))
    else:
        sample(patched, hosts(), start=latent(LONG))
    gc.collect()
    assert len(runs) == 1 and len(kept) >= 4
    assert [ref() for ref in (*runs, *kept)] == [None] * (1 + len(kept))


def test_report_without_patch_nodes(model):
    """A model of our loader has room for a record: the host's sampler fills it too."""
    loaded = outer.with_slot(model.clone())
    assert torch.equal(sample(loaded, hosts())[0], sample(model, hosts())[0])
    record = settings.last_record(loaded)
    assert record.computed_steps == record.total_steps == 8 and record.chunks_finished == 2
    assert record.started.kv_tokens == FRAMES * TOKENS and record.seconds > 0
    assert record.kinds == [["computed"] * 4] * 2


def test_a_repositioned_sink_in_the_hosts_sampler_is_ours():
    """Our sampler moves the sink when it reads, the host's when history is compressed: the same video."""

    def near(on: bool):
        method = {"method": "sink-window", "sink": 1.0, "reposition": on}
        return node("KVCompressor", model=load(), budget=2.0, method=method, dtype=SAME, device=SAME)

    theirs = sample(near(True), hosts(), start=latent(81))[0]
    close(theirs, sample(near(True), ours(), start=latent(81))[0])
    assert not torch.allclose(theirs, sample(near(False), hosts(), start=latent(81))[0], atol=1e-4)
