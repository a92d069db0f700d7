"""The patch nodes with the host's own AR sampler: that they change nothing else, and what they refuse."""

from __future__ import annotations

import logging

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_ar_video import SamplerARVideo
from comfy_extras.nodes_custom_sampler import SplitSigmas
from comfy_extras.nodes_easycache import EasyCacheNode, LazyCacheNode
from host_ar_runs import (
    FRAMES,
    LONG,
    TOKENS,
    Watch,
    chunkwise,
    errors,
    host_ar,
    kv,
    methods,
    outer,
    reuse,
    settings,
    skipping,
    with_kv,
    with_reuse,
)
from hostkit import (
    CUSTOM,
    HEIGHT,
    WIDTH,
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


@pytest.fixture(scope="module")
def model():
    return load()


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
