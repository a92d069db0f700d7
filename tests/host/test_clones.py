"""The host's clones of a model on other devices ("MultiGPU CFG Split"), here two on one CPU under different names."""

from __future__ import annotations

import threading

import comfy.multigpu
import hostkit
import pytest
import torch

SECOND = torch.device("cpu", 0)  # another key than the plain CPU, the same memory


def split(model, again=None):
    """What the host's node does, for devices that are not there. again: what loads the model once more."""
    weights = hostkit.state_dict()
    model = model.clone()
    model.cached_patcher_init = (again or (lambda: hostkit.load(weights)), ())
    clone = model.deepclone_multigpu(new_load_device=SECOND)
    clone.is_multigpu_base_clone = True
    model.set_additional_models("multigpu", [clone])
    model.match_multigpu_clones()
    comfy.multigpu.GPUOptionsGroup().register(model)
    return model


@pytest.fixture
def threads(monkeypatch):
    """Names of the threads in which layers attended."""
    seen: set[str] = set()
    kind = hostkit.module("nodes.adapters.wan.attention").ChunkAttention
    original = kind.layer

    def layer(self, *args, **kwargs):
        seen.add(threading.current_thread().name)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(kind, "layer", layer)
    return seen


def both(threads, change=lambda model: model, plan=None):
    found = []
    for make in (lambda model: model, split):
        model = make(change(hostkit.load()))
        threads.clear()
        found.append(hostkit.sample(model, hostkit.ours(plan), negative=hostkit.prompt(8))[0])
        model.detach() if hasattr(model, "detach") else None
    return found, set(threads)


def test_each_clone_runs_a_branch(threads):
    (one, two), names = both(threads)
    hostkit.close(two, one)
    assert len(names) == 2


def test_with_reuse_compression_and_several_levels(threads):
    def change(model):
        return hostkit.compress(hostkit.reuse(model, threshold=0.5), 1.0)

    (one, two), names = both(threads, change, hostkit.STAGGERED)
    hostkit.close(two, one)
    assert len(names) == 2


def test_bidirectional_attention_is_refused_on_clones():
    plan = {**hostkit.STAGGERED, "attention": "bidirectional"}
    with pytest.raises(Exception, match="block-causal with several GPUs"):
        hostkit.sample(split(hostkit.load()), hostkit.ours(plan), negative=hostkit.prompt(8))


def mini(name):
    return hostkit.NODES["FlowCacheMiniModel"].execute(name).args[0]


def test_the_bundled_models_can_be_split():
    """Their loader notes how they are loaded again, which the host's node asks for."""
    for name in ("wan", "scenes", "magi"):
        model = mini(name)
        clone = model.deepclone_multigpu(new_load_device=SECOND)
        assert clone.model is not model.model and clone.load_device == SECOND


MAGI = {"plan": "sliding window", "chunk_frames": 3, "window_chunks": 4, "solver": "euler", "clean_pass": True}


def test_magi_is_refused_on_clones():
    model = split(mini("magi"), lambda: mini("magi"))
    text = hostkit.node("MiniPrompt", text="a red circle", model="magi")
    sigmas = hostkit.node("MagiSchedule", steps="8", shortcut_mode="8,16,16")
    start = hostkit.latent(33, width=64, height=64)
    with pytest.raises(ValueError, match="model: got 'a model with several GPUs'"):
        hostkit.sample(model, hostkit.ours(MAGI), positive=text, start=start, sigmas=sigmas)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda model: hostkit.reuse(model, threshold=0.5, quantity="residual"), "quantity: got 'residual'"),
        (
            lambda model: hostkit.node(
                "SparseAttention", model=model, preset={"preset": "xattention", "p": 0.9, "stride": 4, "block": 8},
                dense_chunks=1,
            ),
            "model: got 'sparse attention on several GPUs'",
        ),
    ],
    ids=["residual", "sparse"],
)  # fmt: skip
def test_what_works_with_one_model_only_is_refused_on_clones(change, said):
    with pytest.raises(ValueError) as error:
        hostkit.sample(split(change(hostkit.load())), hostkit.ours(), negative=hostkit.prompt(8))
    assert said in str(error.value) and "several GPUs" in str(error.value)


def test_raylights_cache_is_refused(monkeypatch):
    kind = hostkit.CausalWanModel
    original = kind.init_kv_caches

    def init_kv_caches(self, *args, **kwargs):
        return [{**cache, "sp_full_end": 0} for cache in original(self, *args, **kwargs)]

    monkeypatch.setattr(kind, "init_kv_caches", init_kv_caches)
    model = hostkit.reuse(hostkit.load(), threshold=0.5)
    with pytest.raises(Exception, match="raylight keeps K/V in parts on several GPUs"):
        hostkit.sample(model, hostkit.hosts())
