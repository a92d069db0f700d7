"""A cache in one part a branch is the cache: what is written, compressed and read, and what is told of it."""

from __future__ import annotations

import pytest
import torch

from flowcache_core.kv import COMPRESSORS
from flowcache_core.kv.branched import BranchedCache
from flowcache_core.kv.cache import KVCache
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.spec import KVSpec
from flowcache_core.plan import blockwise

PLAN = blockwise(10, 2, 2)
SPEC = KVSpec(layers=2, kv_heads=2, head_dim=4, tokens_per_frame=3, branches=2, batch=1)


@pytest.mark.parametrize("dtype", [None, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", list(COMPRESSORS))
def test_the_same_as_one_cache(name, dtype):
    compressor = COMPRESSORS[name]()
    if name == "merge" and dtype is not None:
        pytest.skip("merged tokens are kept in 16 bits or more")
    settings = KVSettings(budget=max(1.0, compressor.min_budget), compressor=compressor, dtype=dtype)
    caches = [kind(SPEC, settings, PLAN) for kind in (KVCache, BranchedCache)]
    draw = torch.Generator().manual_seed(0)
    for chunk in PLAN.chunks:
        results = [cache.begin(chunk) for cache in caches]
        assert results[0] == results[1]
        for layer in range(2):
            q, k, v = torch.randn(3, 2, 2, 6, 4, generator=draw)
            for branches in (range(2),) if chunk.index % 2 else (range(1), range(1, 2)):
                rows = slice(branches.start, branches.stop)
                found = []
                for cache in caches:
                    cache.write(layer, branches, chunk, k[rows], v[rows])
                    cache.observe(layer, branches, chunk, q[rows])
                    found.append(cache.context(layer, branches, chunk))
                assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
        for cache in caches:
            cache.commit(chunk)
        figures = "tokens clean_tokens capacity_tokens budget_tokens bytes peak_bytes keeps_alike"
        for figure in figures.split():
            assert getattr(caches[0], figure) == getattr(caches[1], figure), figure
    for cache in caches:
        cache.require_finite()
        cache.release()
    with pytest.raises(RuntimeError):
        caches[1].context(0, range(1), PLAN.chunks[-1])
