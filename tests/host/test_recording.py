"""Runs of the host's model are recorded in both samplers: the same table, and the run stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hostkit import hosts, latent, load, module, node, ours, prompt, sample, sigmas_of

settings = module("nodes.adapters.run.settings")
LONG = 45  # 12 latent frames: four chunks
RECORD = {"preset": "record"}


@pytest.fixture(scope="module")
def model():
    return load()


def recorded(model, sampler, **options):
    patched = node("ChunkwiseReuse", model=model, preset=RECORD)
    out, _ = sample(patched, sampler, start=latent(LONG), **options)
    return recording_of(patched, out).grams, out


def recording_of(patched, out):
    return settings.slot_of(patched).recorded_run(out).recording


def test_both_samplers_record_the_same_table(model):
    sigmas, tables = sigmas_of(model, 6), []
    for sampler in (hosts(), ours()):
        plain, _ = sample(model, sampler, start=latent(LONG), sigmas=sigmas)
        grams, out = recorded(model, sampler, sigmas=sigmas)
        assert torch.equal(out, plain)
        assert (grams.first.count, grams.later.count, grams.begun) == (1, 3, 4)
        np.testing.assert_allclose(grams.levels, sigmas.tolist(), atol=1e-6)
        tables.append(grams.tables())
    for host, own in zip(*tables, strict=True):
        np.testing.assert_allclose(host, own, rtol=0, atol=1e-4 * own.max())


def test_what_is_recorded_is_guided(model):
    plain, _ = recorded(model, ours())
    guided, _ = recorded(model, ours(), negative=prompt(), cfg=3.0)  # the same prompt: nothing to guide away from
    for one, other in zip(plain.tables(), guided.tables(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * one.max())


def test_every_run_has_a_recording_of_its_own(model):
    """Of other steps too, and the model that carries the setting keeps none of them itself."""
    patched = node("ChunkwiseReuse", model=model, preset=RECORD)
    runs = [(sampler, steps) for sampler in (hosts(), ours()) for steps in (4, 5)]
    outs = [sample(patched, sampler, sigmas=sigmas_of(patched, steps))[0] for sampler, steps in runs]
    found = [recording_of(patched, out) for out in outs]
    assert [recording.steps for recording in found] == [4, 5, 4, 5]
    assert [recording.grams.whole for recording in found] == [2] * 4
    assert settings.settings_of(patched.model_options).reuse.policy.grams.whole == 0


def test_facts_of_a_run(model):
    patched = node("ChunkwiseReuse", model=model, preset=RECORD)
    out, _ = sample(patched, ours(), negative=prompt(), cfg=3.0, seed=42)
    recording = recording_of(patched, out)
    facts = recording.facts
    assert (facts.guidance, facts.solver, facts.plan, facts.offset) == (3.0, "renoise", "blockwise", 4)
    assert facts.architecture == "wan, 24 wide, 2 layers" and facts.shift == pytest.approx(5.0, rel=0.01)
    assert recording.sources == ("seed 42",) and recording.chunks == 2
