"""K/V settings that cannot work, through the node and both samplers: node, field, value and what is accepted."""

from __future__ import annotations

import math

import pytest
import torch
from hostkit import NODES, SAME, hosts, load, module, node, ours, sample, state_dict

errors = module("flowcache_core.errors")
COMPRESSOR = "KV Cache Compressor"


def stored(model, storage, **fields):
    method = {"method": "recent"}
    return node(
        "KVCompressor", model=model, budget=2.0, method=method, dtype=SAME, device=SAME, storage=storage, **fields
    )


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.mark.parametrize("sampler", [ours, hosts])
@pytest.mark.parametrize("device", [SAME, "cpu"])
@pytest.mark.parametrize(
    "storage", [{"storage": "int4", "value_group": 5}, {"storage": "centroid", "residual_group": 5}]
)
def test_a_group_that_does_not_divide_the_heads(model, storage, device, sampler):
    field = next(name for name in storage if name != "storage")
    patched = node(
        "KVCompressor", model=model, budget=2.0, method={"method": "recent"}, dtype=SAME, device=device, storage=storage
    )
    accepted = "a divisor of the model's head_dim 12: 12, or 0"
    with pytest.raises(errors.SettingError, match=f"^{COMPRESSOR}, {field}: got 5, accepted: {accepted}"):
        sample(patched, sampler())


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ({"storage": "int1"}, "storage: got 'int1', accepted: plain, int8, int4, int2, centroid"),
        ({"storage": "int4", "value_group": 2.5}, "value_group: got 2.5, accepted: a whole number"),
        ({"storage": "int4", "key_group": -1}, "key_group: got -1, accepted: a whole number >= 0"),
        ({"storage": "int8", "exact_recent": math.nan}, "exact_recent: got nan, accepted: a number"),
        ({"storage": "centroid", "centroids": 0}, "centroids: got 0, accepted: a whole number >= 1 and <= 256"),
    ],
)
def test_what_no_storage_takes_is_refused_on_the_node(model, storage, message):
    with pytest.raises(errors.SettingError, match=f"^{COMPRESSOR}, {message}"):
        stored(model, storage)


def test_fewer_than_two_bits_are_no_choice():
    said = NODES["FlowCacheKVCompressor"].validate_inputs(method="recent", storage="int1")
    assert "storage: got int1, accepted: plain, int8, int4, int2, centroid" in said


@pytest.mark.parametrize("sampler", [ours, hosts])
def test_k_v_that_are_not_finite_name_chunk_and_layer(sampler):
    """One broken layer spoils the chunk's latents, and so what every layer keeps of the finished chunk."""
    broken = {**state_dict(), "blocks.1.self_attn.v.weight": torch.full((24, 24), math.nan)}
    with pytest.raises(errors.NotFiniteError, match="int4: keys and values of chunk 0 in layer 0 are NaN or infinite"):
        sample(stored(load(broken), {"storage": "int4"}), sampler())


@pytest.mark.parametrize("sampler", [ours, hosts])
def test_megabytes_below_one_chunk_say_the_least_that_works(model, sampler):
    patched = stored(model, {"storage": "plain"}, preset={"preset": "auto (MB)", "megabytes": 0.01})
    with pytest.raises(errors.SettingError, match=f"^{COMPRESSOR}, megabytes: got 0.01, accepted: [0-9.]+ or more"):
        sample(patched, sampler())
