"""Joint attention in the real host: several chunks in one call of the model, each guided at its own noise level."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from comfy_extras.nodes_custom_sampler import RandomNoise
from hostkit import (
    DIM,
    HEIGHT,
    LAYERS,
    SAME,
    STAGGERED,
    WIDTH,
    compress,
    latent,
    load,
    metadata,
    module,
    node,
    ours,
    prompt,
    reuse,
    sample,
    state_dict,
)
from safetensors.torch import save_file

engine = module("flowcache_core.engine")
released, settings = module("flowcache_core.released"), module("nodes.adapters.run.settings")
WanDenoiser = module("flowcache_core.models.wan.denoiser").WanDenoiser
load_wan = module("flowcache_core.models.wan.load").load_wan
host_noise = module("flowcache_core.noise").host_noise
solvers = module("flowcache_core.solvers").SOLVERS
ROWS = dict(released.RELEASED)
LONG, ROLLING = "Causal-Forcing 1.3B, long video", "Rolling Forcing 1.3B"
JOINT = {**STAGGERED, "solver": "renoise", "clean_pass": True, "attention": "joint", "ar_step": 1}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for title, row in ROWS.items():
        monkeypatch.setitem(released.RELEASED, title, replace(row, size=(DIM, LAYERS)))


@pytest.fixture
def model():
    return load()


def run(model, title=LONG, frames=12, plan=None, **options):
    sampler = ours(plan or {"plan": "as released", "model": title}, **options.pop("inputs", {}))
    levels = node("ReleasedSchedule", model=title)
    return sample(model, sampler, start=latent(4 * frames - 3), sigmas=levels, seed=3, **options)[0]


def by_core(path, title, frames, cfg, prefix=None):
    """The same run by the core alone, from the same file."""
    row = released.RELEASED[title]
    given = 0 if prefix is None else prefix.shape[2]
    plan = row.plan.plan(frames, row.schedule.steps, given)
    made = engine.EngineSettings(
        plan=plan,
        schedule=row.schedule,
        solver=solvers[row.solver](),
        kv=row.kv(),
        clean_pass=True,
        attention="joint",
        joint_frames=row.joint_frames,
    )
    texts = [prompt()[0][0], prompt(8)[0][0]][: 1 if cfg == 1 else 2]
    noise = RandomNoise.execute(3).args[0].generate_noise(latent(4 * frames - 3))
    source = host_noise(3, plan.prefix_chunks)
    denoiser = WanDenoiser(load_wan(path), {0: texts}, cfg)
    return engine.generate(denoiser, made, noise, prefix=prefix, noise_source=source)


@pytest.mark.parametrize("cfg", [1.0, 4.0], ids=["one branch", "cfg"])
@pytest.mark.parametrize(("title", "frames"), [(LONG, 42), (ROLLING, 18)])
def test_host_and_core_agree(tmp_path, title, frames, cfg):
    path = tmp_path / "model.safetensors"
    save_file(state_dict(), path, metadata=metadata(causal=False))
    model = load()
    options = {} if cfg == 1 else {"negative": prompt(8), "cfg": cfg}
    value = model.model.process_latent_in(run(model, title, frames, **options))
    expected = by_core(path, title, frames, cfg)
    assert expected.std() > 0.1 and (value - expected).abs().max() < 1e-4 * max(1.0, expected.abs().max())


def test_a_clean_start_agrees_too(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(state_dict(), path, metadata=metadata(causal=False))
    model = load()
    prefix = torch.randn(1, 16, 6, HEIGHT // 8, WIDTH // 8, generator=torch.Generator().manual_seed(5))
    value = model.model.process_latent_in(run(model, frames=18, inputs={"prefix": {"samples": prefix}}))
    expected = by_core(path, LONG, 18, 1.0, model.model.process_latent_in(prefix))
    assert (value - expected).abs().max() < 1e-4


def test_one_call_of_the_model_answers_for_all_chunks(model, monkeypatch):
    calls = []
    inner = model.model.diffusion_model
    forward = inner.forward_orig
    monkeypatch.setattr(inner, "forward_orig", lambda x, *a, **k: calls.append(tuple(x.shape)) or forward(x, *a, **k))
    run(model, frames=18, negative=prompt(8), cfg=4.0)
    steps, clean = [shape[2] for shape in calls if shape[2] > 3], [shape[2] for shape in calls if shape[2] == 3]
    assert steps == [6, 9, 12, 12, 12, 9, 6]
    assert len(clean) == 2 + 5  # the first and the last tick, and a clean pass behind every chunk but the last
    assert {shape[0] for shape in calls} == {2}


def test_the_report_says_what_was_done(model):
    carried = compress(model, 100.0)
    released.RELEASED[LONG] = replace(released.RELEASED[LONG], window_frames=0, sink_frames=0)
    run(carried, frames=9)
    record = settings.last_record(carried)
    assert record.started.attention == "joint" and record.total_steps == 12
    assert [step.context_tokens for step in record.steps_taken if step.tick == 2] == [9 * 8] * 3


def test_the_window_of_the_release_holds_and_others_are_refused(model):
    method = {"method": "sink-window", "sink": 1.0, "reposition": True}
    same = node("KVCompressor", model=model, budget=7.0, method=method, dtype=SAME, device=SAME)
    assert torch.equal(run(same, frames=36), run(model, frames=36))
    with pytest.raises(Exception, match=r"(?s)KV Cache Compressor.*budget.*7 with sink-window, sink 1, reposition on"):
        run(compress(model, 2.0))


def test_users_may_choose_it_for_their_own_plan(model):
    levels = node("ReleasedSchedule", model=LONG)
    tight = compress(model, 1.0)

    def video(model, **fields):
        return sample(model, ours({**JOINT, "chunk_frames": 3, **fields}), start=latent(81), sigmas=levels)[0]

    joint, causal = video(model), video(model, attention="block-causal")
    assert joint.isfinite().all() and not torch.allclose(joint, causal, atol=1e-3)
    bounded = video(tight)
    assert bounded.isfinite().all() and settings.last_record(tight).compressions
    assert not torch.equal(bounded, joint)


def test_guidance_that_evaluates_again_leaves_the_first_k_v(model):
    """A post-CFG function that runs the model once more, perturbed: what it makes must not become history."""
    from comfy.samplers import calc_cond_batch

    def again(args):
        x, sigma, options = args["input"], args["sigma"], args["model_options"].copy()
        options["transformer_options"] = {**options["transformer_options"], "perturbed": True}
        calc_cond_batch(args["model"], [args["cond"]], x * 1.5, sigma, options)
        return args["denoised"]

    watched = model.clone()
    watched.set_model_sampler_post_cfg_function(again)
    plan = {**JOINT, "chunk_frames": 3, "clean_pass": False}  # a finished chunk's K/V is then that of its last step
    assert torch.equal(run(watched, frames=24, plan=plan), run(model, frames=24, plan=plan))


def test_prompts_that_hold_at_some_levels(model):
    """Two entries of one conditioning, each for a part of the noise levels: chunks at once under different ones."""
    import node_helpers

    early = node_helpers.conditioning_set_values(prompt(), {"start_percent": 0.0, "end_percent": 0.4})
    late = node_helpers.conditioning_set_values(prompt(9), {"start_percent": 0.4, "end_percent": 1.0})
    both, one = run(model, frames=18, positive=early + late), run(model, frames=18)
    assert both.isfinite().all() and not torch.allclose(both, one, atol=1e-3)


def test_a_mask_keeps_what_is_known(model):
    """Noise masks inside frames: the known half of every frame comes out as it went in."""
    start = latent(45)
    known = torch.randn(start["samples"].shape, generator=torch.Generator().manual_seed(4))
    mask = torch.ones(1, 1, 12, HEIGHT // 8, WIDTH // 8)
    mask[..., : WIDTH // 16] = 0
    levels = node("ReleasedSchedule", model=LONG)
    sampler = ours({"plan": "as released", "model": LONG})
    out = sample(model, sampler, start={"samples": known, "noise_mask": mask}, sigmas=levels)[0]
    assert torch.allclose(out[..., : WIDTH // 16], known[..., : WIDTH // 16], atol=1e-4)
    assert not torch.allclose(out[..., WIDTH // 16 :], known[..., WIDTH // 16 :], atol=1e-1)


def test_reuse_is_refused_where_it_cannot_be_and_taken_back_where_it_can(model):
    slow = reuse(model, threshold=100.0, warmup_steps=1)
    run(slow, frames=12)
    record = settings.last_record(slow)
    actions = {}
    for step in record.steps_taken:
        actions.setdefault(step.tick, set()).add(step.action)
    assert all(len(found) == 1 for found in actions.values())
    with pytest.raises(Exception, match="residual.*joint"):
        run(reuse(model, threshold=100.0, warmup_steps=1, quantity="residual"))


def test_prompts_by_chunk_are_refused(model):
    later = {"start_2": 2, "prompt_2": prompt(9)}
    prompts = node("PromptSchedule", prompt_1=prompt(), recache=False, **later)
    with pytest.raises(Exception, match=r"(?s)AR Prompt Schedule.*start_2.*joint"):
        run(model, positive=prompts)
