"""torch.compile before our samplers: the same video as without, and a chunk more is no compilation more."""

from __future__ import annotations

import logging

import comfy.model_management
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_torch_compile import TorchCompileModel, skip_torch_compile_dict
from hostkit import (
    BLOCKWISE,
    STAGGERED,
    compress,
    hosts,
    latent,
    load,
    module,
    ours,
    prompt,
    reuse,
    sample,
    sigmas_of,
)

SettingError = module("flowcache_core.errors").SettingError
last_record = module("nodes.adapters.run.settings").last_record
BIDIRECTIONAL = {**STAGGERED, "attention": "bidirectional"}
SLIDING = {"plan": "sliding window", "chunk_frames": 2, "window_chunks": 2, "solver": "euler", "clean_pass": False}
BLOCKS = [f"diffusion_model.blocks.{index}" for index in range(2)]


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def compiled(model, keys=("diffusion_model",), **options):
    """As the host's node, with a backend that traces all the same and is quick."""
    other = model.clone()
    kwargs = {"backend": "eager", "options": {"guard_filter_fn": skip_torch_compile_dict}, **options}
    set_torch_compile_wrapper(model=other, keys=list(keys), **kwargs)
    return other


def nothing(model):
    return model


PATCHES = {
    "plain": nothing,
    "velocity": lambda model: reuse(model, policy="schedule", computed_steps="0, 2, 5"),
    "increment": lambda model: reuse(model, policy="schedule", computed_steps="0, 2, 5", quantity="increment"),
    "forecast": lambda model: reuse(model, policy="schedule", computed_steps="0, 2, 5", quantity="forecast"),
    "residual": lambda model: reuse(model, policy="schedule", computed_steps="0, 2, 5", quantity="residual"),
    "residual and budget": lambda model: compress(reuse(model, threshold=50.0, quantity="residual"), 1),
    "budget": lambda model: compress(model, 1),
}


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def same(model, other, patch=nothing, plan=None, **options):
    """Largest difference to the model that is not compiled; the other one was."""
    options = {"start": latent(25), "sigmas": sigmas_of(model, 6), **options}
    plain = sample(patch(model), ours(plan), **options)[0]
    before = graphs()
    made = sample(patch(other), ours(plan), **options)[0]
    assert graphs() > before or before > 0
    assert (made - plain).abs().max() <= 1e-5


@pytest.mark.parametrize("patch", PATCHES)
def test_compiled_is_plain(model, patch):
    same(model, compiled(model), PATCHES[patch], STAGGERED, negative=prompt(8, tokens=5))


@pytest.mark.parametrize("plan", [BLOCKWISE, SLIDING], ids=lambda plan: plan["plan"])
def test_other_plans(model, plan):
    same(model, compiled(model), PATCHES["residual and budget"], plan)


@pytest.mark.parametrize("ar_step", [0, 2])
def test_bidirectional(model, ar_step):
    same(model, compiled(model), plan={**BIDIRECTIONAL, "ar_step": ar_step}, negative=prompt(8))


def test_blocks_compiled_by_another_node(model):
    for patch in (nothing, PATCHES["residual and budget"]):
        same(model, compiled(model, BLOCKS), patch, STAGGERED, negative=prompt(8))


def test_the_hosts_node_with_inductor(model):
    (other,) = TorchCompileModel.execute(model, "inductor").args
    same(model, other, PATCHES["budget"], STAGGERED)


def test_more_chunks_and_more_runs_compile_nothing_anew(model, monkeypatch):
    """The host's attention has the machine's free memory in its graph as a number: that one stands still here."""

    def free(dev=None, torch_free_too=False):
        return (2**33, 2**33) if torch_free_too else 2**33

    monkeypatch.setattr(comfy.model_management, "get_free_memory", free)
    other = compiled(model)
    counts = []
    for length in (29, 29, 61, 61, 93):  # whole chunks, so that all are of one shape
        sample(other, ours(STAGGERED), start=latent(length), negative=prompt(8), sigmas=sigmas_of(model, 3))
        counts.append(graphs())
    assert counts[0] > 0 and counts == counts[:1] * 5


def test_other_samplers_before_and_after(model):
    """Graphs traced for one sampler are not taken for the other."""
    import comfy.samplers

    euler, other = comfy.samplers.sampler_object("euler"), compiled(model)
    plain, mine = sample(model, euler)[0], sample(model, ours(STAGGERED))[0]
    for sampler, expected in ((euler, plain), (ours(STAGGERED), mine)) * 2:
        assert (sample(other, sampler)[0] - expected).abs().max() <= 1e-5
    whole = compiled(model, BLOCKS)
    for sampler, expected in ((euler, plain), (ours(STAGGERED), mine)) * 2:
        assert (sample(whole, sampler)[0] - expected).abs().max() <= 1e-5


def test_nothing_is_left_on_the_model(model):
    transformer = model.model.diffusion_model
    blocks = list(transformer.blocks)
    sample(compiled(model), ours(STAGGERED))
    assert model.model.diffusion_model is transformer and list(transformer.blocks) == blocks
    assert not any("forward" in vars(block.self_attn) for block in blocks)


def test_one_graph_is_refused_by_name(model):
    with pytest.raises(SettingError, match="fullgraph: got True, accepted: off in the torch.compile node"):
        sample(compiled(model, fullgraph=True), ours())


@pytest.mark.parametrize("keys", [("diffusion_model",), BLOCKS], ids=["whole", "blocks"])
def test_the_hosts_ar_sampler_runs_uncompiled_and_says_so(model, keys, caplog):
    patch = PATCHES["budget"]
    plain = sample(patch(model), hosts(), start=latent(33))[0]
    with caplog.at_level(logging.WARNING):
        made = sample(patch(compiled(model, keys)), hosts(), start=latent(33))[0]
    assert torch.equal(made, plain)
    assert sum("torch.compile has no effect in Sampler AR Video" in text for text in caplog.messages) == 1


def test_wrappers_of_other_nodes_still_run(model):
    seen = []
    other = compiled(model)
    other.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "test", lambda ex, *a, **k: (seen.append(1), ex(*a, **k))[1])
    same(model, other, plan=STAGGERED)
    assert seen
