"""How a run in the host's own AR sampler ends: interrupts, errors, memory, the report."""

from __future__ import annotations

import gc
import weakref

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from host_ar_runs import (
    FRAMES,
    LONG,
    TOKENS,
    chunkwise,
    host_ar,
    kv,
    methods,
    outer,
    settings,
    skipping,
    with_kv,
    with_reuse,
)
from hostkit import (
    hosts,
    latent,
    load,
    sample,
)


@pytest.fixture(scope="module")
def model():
    return load()


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
