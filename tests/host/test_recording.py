"""Runs of the host's model are recorded in both samplers: the same table, and the run stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hostkit import hosts, latent, load, module, ours, prompt, sample, sigmas_of

Record = module("flowcache_core.calibrate.record").Record
outer = module("nodes.adapters.run.outer")
settings = module("nodes.adapters.run.settings")
velocity = module("flowcache_core.reuse.quantity").Velocity
SettingError = module("flowcache_core.errors").SettingError
LONG = 45  # 12 latent frames: four chunks


@pytest.fixture(scope="module")
def model():
    return load()


def recorded(model, sampler, **options):
    record = Record()
    patched = outer.with_reuse(model, settings.ReuseSettings(record, velocity()))
    out, _ = sample(patched, sampler, start=latent(LONG), **options)
    return record.grams, out


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


def test_a_second_run_of_other_steps_is_refused_by_name(model):
    record = Record()
    patched = outer.with_reuse(model, settings.ReuseSettings(record, velocity()))
    sample(patched, ours(), sigmas=sigmas_of(model, 4))
    for sampler in (hosts(), ours()):
        with pytest.raises(SettingError, match="recording: got '5 steps with other noise levels'"):
            sample(patched, sampler, sigmas=sigmas_of(model, 5))
    assert record.grams.whole == 2
