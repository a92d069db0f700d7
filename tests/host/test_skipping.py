"""Nodes of other packs that answer in the model's place, skip a part of it or run it twice are named."""

from __future__ import annotations

import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from hostkit import BLOCKWISE, STAGGERED, compress, hosts, load, module, ours, prompt, reuse, sample, sigmas_of

SettingError = module("flowcache_core.errors").SettingError
with_slot = module("nodes.adapters.run.outer").with_slot
BIDIRECTIONAL = {**STAGGERED, "attention": "bidirectional"}


@pytest.fixture(scope="module")
def model():
    return load()


class TeaCacheLike:
    """As such nodes do it: from the ``first`` call on, every second call is answered with what the last one gave."""

    def __init__(self, first=2, only=None):
        self.first, self.only, self.calls, self.last = first, only, 0, None

    def answer(self, run, conds=(0,)):
        if self.only is not None and self.only not in conds:
            return run()
        self.calls += 1
        if self.calls > self.first and self.calls % 2 and self.last is not None:
            return self.last
        self.last = run()
        return self.last

    def unet(self, apply_model, args):
        run = lambda: apply_model(args["input"], args["timestep"], **args["c"])  # noqa: E731
        return self.answer(run, args["cond_or_uncond"])

    def wrapper(self, executor, *args, **kwargs):
        return self.answer(lambda: executor(*args, **kwargs))


def by_function_wrapper(model, **kind):
    other = model.clone()
    other.set_model_unet_function_wrapper(TeaCacheLike(**kind).unet)
    return other


def by_wrapper(model, kind, **options):
    other = model.clone()
    other.add_wrapper_with_key(kind, "teacache", TeaCacheLike(**options).wrapper)
    return other


def by_forward(model):
    """The blocks of the transformer are passed over, as by a forward of another pack's own."""

    def unet(apply_model, args):
        blocks = model.model.diffusion_model.blocks
        kept = list(blocks)
        calls.append(1)
        try:
            if len(calls) > 2:
                del blocks[1]
            return apply_model(args["input"], args["timestep"], **args["c"])
        finally:
            model.model.diffusion_model.blocks = torch.nn.ModuleList(kept)

    calls: list[int] = []
    other = model.clone()
    other.set_model_unet_function_wrapper(unet)
    return other


SKIPPING = {
    "function wrapper": (by_function_wrapper, r"model function wrapper test_skipping.TeaCacheLike.unet"),
    "APPLY_MODEL": (lambda m: by_wrapper(m, WrappersMP.APPLY_MODEL), r"apply_model wrapper test_skipping.TeaCacheLike"),
    "DIFFUSION_MODEL": (lambda m: by_wrapper(m, WrappersMP.DIFFUSION_MODEL), r"diffusion_model wrapper test_skipping"),
    "CALC_COND_BATCH": (lambda m: by_wrapper(m, WrappersMP.CALC_COND_BATCH), r"calc_cond_batch wrapper test_skipping"),
    "PREDICT_NOISE": (lambda m: by_wrapper(m, WrappersMP.PREDICT_NOISE), r"predict_noise wrapper test_skipping"),
}
NAMED = r"model: got 'the model was not run for .*TeaCache, MagCache, first-block cache.*"


@pytest.mark.parametrize("plan", [BLOCKWISE, STAGGERED], ids=lambda plan: plan["plan"])
@pytest.mark.parametrize("kind", SKIPPING)
def test_skipped_calls_in_our_sampler(model, kind, plan):
    make, name = SKIPPING[kind]
    for patch in (lambda m: m, lambda m: compress(reuse(m), 1)):
        with pytest.raises(SettingError, match=f"{NAMED}{name}") as caught:
            sample(patch(make(model)), ours(plan), negative=prompt(8))
        assert "conditioning" not in str(caught.value)


@pytest.mark.parametrize("only, name", [(0, "positive"), (1, "negative")])
def test_one_skipped_branch_is_named(model, only, name):
    """Two calls per step, since the prompts differ in length; one of them is answered from a cache."""
    other = by_function_wrapper(model, only=only)
    with pytest.raises(SettingError, match=f"not run for {name}, chunk 0 at sigma"):
        sample(other, ours(STAGGERED), negative=prompt(8, tokens=5))


@pytest.mark.parametrize("sampler", [ours, hosts])
def test_skipped_layers_are_counted(model, sampler):
    with pytest.raises(SettingError, match=r"1 of its layers were not run for .*chunk 0"):
        sample(with_slot(by_forward(model)), sampler(STAGGERED) if sampler is ours else hosts())


@pytest.mark.parametrize("kind", [kind for kind in SKIPPING if kind != "DIFFUSION_MODEL"])
@pytest.mark.parametrize("first", [0, 2, 4, 7, 8])
def test_skipped_calls_in_the_hosts_sampler(model, kind, first):
    """Wherever in the run: a step, the clean pass, the last chunk. That sampler runs no DIFFUSION_MODEL wrapper."""
    make = {
        "function wrapper": lambda: by_function_wrapper(model, first=first),
        **{
            name: lambda name=name: by_wrapper(model, getattr(WrappersMP, name), first=first)
            for name in SKIPPING
            if name != "function wrapper"
        },
    }[kind]
    for patch in (with_slot, lambda m: compress(m, 1), lambda m: reuse(m, policy="schedule", computed_steps="0, 2")):
        with pytest.raises(SettingError, match=f"{NAMED}{SKIPPING[kind][1]}.*AR Video Sampler"):
            sample(patch(make()), hosts())


def twice(model, kind):
    other = model.clone()
    if kind == "function wrapper":

        def unet(apply_model, args):
            apply_model(args["input"] + 1, args["timestep"], **args["c"])
            return apply_model(args["input"], args["timestep"], **args["c"])

        other.set_model_unet_function_wrapper(unet)
    else:
        other.add_wrapper_with_key(kind, "test", lambda ex, x, *a, **k: (ex(x + 1, *a, **k), ex(x, *a, **k))[1])
    return other


@pytest.mark.parametrize("kind", ["function wrapper", WrappersMP.APPLY_MODEL, WrappersMP.DIFFUSION_MODEL])
def test_run_twice_in_our_sampler(model, kind):
    with pytest.raises(SettingError, match=r"the model ran twice in one evaluation of chunk 0.*test_skipping"):
        sample(twice(model, kind), ours(STAGGERED))


@pytest.mark.parametrize("kind", ["function wrapper", WrappersMP.APPLY_MODEL])
def test_run_twice_in_the_hosts_sampler(model, kind):
    with pytest.raises(SettingError, match=r"the model ran twice .*test_skipping.*AR Video Sampler"):
        sample(with_slot(twice(model, kind)), hosts())


def test_a_wrapper_that_runs_the_model_is_no_matter(model):
    other = by_function_wrapper(model, first=10**6)
    assert torch.equal(sample(other, ours(STAGGERED))[0], sample(model, ours(STAGGERED))[0])
    assert torch.equal(sample(with_slot(other), hosts())[0], sample(model, hosts())[0])


def test_without_kv_a_cache_may_answer(model):
    """With bidirectional attention at one noise level it is an ordinary sampling run: what the node does there it does
    here.
    """
    euler = comfy.samplers.sampler_object("euler")
    whole = {**BIDIRECTIONAL, "ar_step": 0}
    made, theirs = (
        sample(by_function_wrapper(model), sampler, sigmas=sigmas_of(model, 6))[0] for sampler in (ours(whole), euler)
    )
    assert (made - theirs).abs().max() < 1e-5


def test_a_cache_is_named_where_parts_take_turns(model):
    for make, name in SKIPPING.values():
        if "diffusion_model" not in name:  # that one is asked for the whole window, once per tick
            with pytest.raises(SettingError, match=f"{NAMED}{name}"):
                sample(make(model), ours(BIDIRECTIONAL), negative=prompt(8), sigmas=sigmas_of(model, 6))


def test_conditioning_that_holds_nowhere_is_still_told_as_such(model):
    late = [[prompt()[0][0], {"start_percent": 0.9, "end_percent": 1.0}]]
    with pytest.raises(SettingError, match="conditioning: got 'none for chunk 0'"):
        sample(model, positive=late)
