"""What a SkyReels-V2 user sets wrong in the graph, and settings at the edge that work."""

from __future__ import annotations

import comfy.samplers
import pytest
import torch
from hostkit import BLOCKWISE, STAGGERED, close, latent, load, module, ours, prompt, reuse, sample, sigmas_of

SettingError = module("flowcache_core.errors").SettingError
last_record = module("nodes.adapters.run.settings").last_record
SAMPLER = "AR Video Sampler (FlowCache), "
WINDOWS = {**STAGGERED, "window_frames": 6, "overlap_frames": 2}


@pytest.fixture(scope="module")
def model():
    return load(causal=False)


@pytest.mark.parametrize(
    ("plan", "length", "message"),
    [
        ({"ar_step": -1}, 21, "ar_step: got -1, accepted: a whole number >= 0"),
        ({"chunk_frames": 0}, 21, "chunk_frames: got 0, accepted: a whole number >= 1"),
        ({"window_frames": 1}, 57, "window_frames: got 1, accepted: 0, or at least the 2 latent frames of a chunk"),
        (
            {"window_frames": 6, "overlap_frames": 6},
            57,
            "overlap_frames: got 6, accepted: a whole number >= 1 and <= 5",
        ),
        ({"window_frames": 6, "overlap_frames": 3}, 57, "overlap_frames: got 3, accepted: a multiple of the 2 latent"),
        ({"prefix_noise": 1.5}, 21, "prefix_noise: got 1.5, accepted: a number from 0 to 1"),
        ({"attention": "causal"}, 21, "attention: got 'causal', accepted: block-causal or bidirectional"),
    ],
)
def test_refused_before_anything_is_computed(model, plan, length, message):
    calls = []
    watched = model.clone()
    watched.set_model_unet_function_wrapper(lambda f, args: calls.append(args))
    with pytest.raises(SettingError) as refused:
        sample(watched, ours({**STAGGERED, **plan}), start=latent(length))
    assert str(refused.value).startswith(SAMPLER + message)
    assert calls == []


def test_given_frames_that_fill_the_first_window(model):
    prefix = {"samples": torch.ones(1, 16, 6, 4, 8)}
    with pytest.raises(
        SettingError, match="prefix frames: got 6, accepted: fewer than the 6 latent frames of a window"
    ):
        sample(model, ours(WINDOWS, prefix=prefix), start=latent(57))


def test_a_partial_last_window(model):
    """7 new frames do not fill the second window of 6 with its overlap of 2 a whole number of times."""
    out = sample(model, ours(WINDOWS), start=latent(49))[0]
    assert out.shape[2] == 13 and torch.isfinite(out).all()
    assert out[:, :, 10:].std() > 0.1


@pytest.mark.parametrize(("cfg", "branches"), [(1.0, 1), (4.0, 2)])
def test_guidance_of_1_runs_one_branch(model, cfg, branches):
    watched = reuse(model)
    out = sample(watched, ours(STAGGERED), negative=prompt(8), cfg=cfg)[0]
    record = last_record(watched)
    assert {step.branches for step in record.steps_taken} == {branches}
    if branches == 1:
        close(out, sample(model, ours(STAGGERED))[0])


@pytest.mark.parametrize("size", [(72, 40), (72, 32), (64, 40)])
def test_sizes_that_are_no_multiple_of_16_run_as_the_host_runs_them(model, size):
    """ComfyUI pads latents to whole patches; the core refuses such sizes, the node follows the host."""
    start = {"samples": torch.zeros(1, 16, 6, size[1] // 8, size[0] // 8)}
    whole = {**BLOCKWISE, "chunk_frames": 6, "solver": "euler", "clean_pass": False}
    euler = comfy.samplers.sampler_object("euler")
    close(sample(model, ours(whole), start=start)[0], sample(model, euler, start=start)[0])
    assert torch.isfinite(sample(model, ours(STAGGERED), start=start)[0]).all()


@pytest.mark.parametrize("preset", ["fast", "slow"])
def test_presets_are_for_50_steps(model, preset):
    """As picked in the template, and refused by name at another number of steps."""
    name = f"skyreels-v2-1.3b-540p: {preset}"
    with pytest.raises(SettingError, match=f"FlowCache Chunkwise Reuse, preset {name}: got '20 steps"):
        sample(reuse_preset(model, name), ours(STAGGERED), sigmas=sigmas_of(model, 20))


@pytest.mark.parametrize(("preset", "first", "later"), [("fast", 34, 16), ("slow", 39, 21)])
def test_presets_compute_the_steps_of_their_lists(preset, first, later):
    """Over the nine chunks of the published run that is the paper's number: 162, and 208 for its 207."""
    from comfy_extras.nodes_model_advanced import ModelSamplingSD3

    model = ModelSamplingSD3().patch(load(causal=False), 8.0)[0]
    chosen = reuse_preset(model, f"skyreels-v2-1.3b-540p: {preset}")
    sample(chosen, ours({**STAGGERED, "ar_step": 5, "solver": "unipc"}), sigmas=sigmas_of(model, 50))
    record = last_record(chosen)
    assert (record.computed_steps, record.total_steps) == (first + 2 * later, 3 * 50)


def reuse_preset(model, name):
    from hostkit import node

    return node("ChunkwiseReuse", model=model, preset={"preset": name})
