"""Heads with budgets of their own: every head as a cache of its own would have it, whatever it is combined with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flowcache_core.engine import EngineSettings, generate
from flowcache_core.errors import SettingError
from flowcache_core.kv import COMPRESSORS
from flowcache_core.kv.branched import BranchedCache
from flowcache_core.kv.cache import KVCache
from flowcache_core.kv.head_shares import head_shares
from flowcache_core.kv.headed import HeadedCache, cache_of
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.size import peak_bytes, read_bytes
from flowcache_core.kv.spec import KVSpec
from flowcache_core.kv.storage import STORAGES
from flowcache_core.models.common.attention import attend_heads
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.plan import blockwise
from flowcache_core.schedule import shifted
from flowcache_core.sparse.settings import SparseSettings

PLAN = blockwise(12, 2, 2)
SPEC = KVSpec(layers=2, kv_heads=4, head_dim=8, tokens_per_frame=3, branches=2, batch=1)
BUDGETS = ((2.0, 3.5, 2.0, 5.0), (3.0, 2.0, 4.0, 2.0))


def drawn(spec: KVSpec, draw: torch.Generator, tokens: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(2, spec.heads, tokens, spec.head_dim, generator=draw)
    k, v = (torch.randn(2, spec.kv_heads, tokens, spec.head_dim, generator=draw) for _ in range(2))
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Queries that share K/V heads too."""
    shared = q.shape[1] // k.shape[1]
    k, v, bias = (one if one is None else one.repeat_interleave(shared, 1) for one in (k, v, bias))
    assert k is not None and v is not None
    return attend_heads(q, k, v, bias)


@pytest.mark.parametrize("queries", [None, 8])
@pytest.mark.parametrize("storage", ["plain", "int8", "int4"])
@pytest.mark.parametrize("name", [name for name in COMPRESSORS if name != "random"])
def test_every_head_is_as_in_a_cache_of_its_own(name: str, storage: str, queries: int | None) -> None:
    compressor = COMPRESSORS[name]()
    if compressor.merges and storage != "plain":
        pytest.skip("merged values are made anew")
    spec = replace(SPEC, query_heads=queries)
    settings = KVSettings(BUDGETS, compressor, storage=STORAGES[storage]())
    cache = cache_of(spec, settings, PLAN)
    shared = spec.heads // spec.kv_heads
    one = replace(spec, kv_heads=1, query_heads=shared)
    alone = [KVCache(one, replace(settings, budget=tuple(row[head] for row in BUDGETS)), PLAN) for head in range(4)]
    draw, seen = torch.Generator().manual_seed(0), set()
    for chunk in PLAN.chunks:
        for each in (cache, *alone):
            each.begin(chunk)
            each.note_change(chunk, torch.rand(1, 6, generator=torch.Generator().manual_seed(chunk.index)))
        for layer in range(2):
            q, k, v = drawn(spec, draw)
            cache.write(layer, range(2), chunk, k, v)
            cache.observe(layer, range(2), chunk, q)
            out = cache.attend(layer, range(2), chunk, q, attend)
            for head, each in enumerate(alone):
                own, of = slice(head, head + 1), slice(head * shared, (head + 1) * shared)
                each.write(layer, range(2), chunk, k[:, own], v[:, own])
                each.observe(layer, range(2), chunk, q[:, of])
                expected = each.attend(layer, range(2), chunk, q[:, of], attend)
                torch.testing.assert_close(out[:, of], expected, rtol=1e-5, atol=1e-5)
                seen.add(each.context(layer, range(2), chunk)[0].shape[2])
        for each in (cache, *alone):
            each.commit(chunk)
        assert cache.bytes == sum(each.bytes for each in alone)
    assert len(seen) > 4  # heads did keep unequally much
    assert cache.peak_bytes == peak_bytes(spec, settings, PLAN) == sum(each.peak_bytes for each in alone)
    assert cache.read_bytes <= cache.most_read_bytes() == read_bytes(spec, settings, PLAN)
    cache.release()
    with pytest.raises(RuntimeError):
        cache.attend(0, range(2), PLAN.chunks[-1], q, attend)


def test_heads_of_one_budget_share_a_cache_and_are_one_where_all_are_alike() -> None:
    shares = head_shares(SPEC, KVSettings(BUDGETS))
    assert [one.heads for one in shares] == [((0, 2), (1, 3)), ((1,), (0,)), ((3,), (2,))]
    assert [one.settings.budget for one in shares] == [(2.0, 2.0), (3.5, 3.0), (5.0, 4.0)]
    assert len(head_shares(SPEC, KVSettings(((3.0,) * 4, 2.0)))) == 1
    rank = replace(SPEC, kv_heads=2, first_head=2, all_kv_heads=4)
    assert [one.settings.budget for one in head_shares(rank, KVSettings(BUDGETS))] == [(2.0, 2.0), (5.0, 4.0)]


def test_branches_on_devices_of_their_own() -> None:
    settings, draw = KVSettings(BUDGETS), torch.Generator().manual_seed(1)
    caches = [HeadedCache(SPEC, settings, PLAN), BranchedCache(SPEC, settings, PLAN)]
    for chunk in PLAN.chunks:
        for each in caches:
            each.begin(chunk)
        q, k, v = drawn(SPEC, draw)
        for layer in range(2):
            for each in caches:
                each.write(layer, range(2), chunk, k, v)
            found = [each.attend(layer, range(2), chunk, q, attend) for each in caches]
            torch.testing.assert_close(*found)
            own = [each.context(layer, range(2), chunk, newest=6) for each in caches]
            assert torch.equal(own[0][0], k) and torch.equal(own[1][1], v)  # what is the chunk's own all heads have
        if chunk is PLAN.chunks[-1]:
            with pytest.raises(SettingError, match="budget: got 'one per head'"):
                caches[0].context(0, range(2), chunk)
        for each in caches:
            each.commit(chunk)


def test_a_video_with_budgets_of_heads() -> None:
    """More than the video has: as without; less: another video."""
    torch.manual_seed(0)
    config = WanConfig(dim=48, ffn_dim=48, num_layers=2, num_heads=2, text_dim=16, freq_dim=16)
    model = WanTransformer(config).eval().requires_grad_(False)
    torch.nn.init.normal_(model.head.head.weight, std=0.1)
    denoiser, noise = WanDenoiser(model, {0: (torch.randn(1, 5, 16),)}), torch.randn(1, 16, 6, 4, 4)
    spec = denoiser.kv_spec(noise)
    base = EngineSettings(blockwise(6, 1, 2), shifted(2, 3.0), clean_pass=True)
    whole = generate(denoiser, base, noise.clone())
    roomy = tuple(tuple(50.0 + head for head in range(spec.kv_heads)) for _ in range(spec.layers))
    same = generate(denoiser, replace(base, kv=KVSettings(roomy)), noise.clone())
    torch.testing.assert_close(same, whole)
    few = tuple(tuple(1.0 + head for head in range(spec.kv_heads)) for _ in range(spec.layers))
    assert not torch.allclose(generate(denoiser, replace(base, kv=KVSettings(few)), noise.clone()), whole)


def test_what_budgets_of_heads_do_not_go_with() -> None:
    base = EngineSettings(PLAN, shifted(2, 3.0))
    with pytest.raises(SettingError, match="budget: got 'one per head', accepted: one number, or one per layer: sp"):
        replace(base, kv=KVSettings(BUDGETS), sparse=SparseSettings())
    for wrong in (((2.0, 3.0),), ((2.0, 3.0), (2.0, 3.0)), BUDGETS[:1], ((), ()), ((2.0, "x"), 2.0)):
        with pytest.raises(SettingError, match="budget"):
            cache_of(SPEC, KVSettings(wrong), PLAN)
    with pytest.raises(SettingError, match="budget: got 0.5"):
        KVSettings(((2.0, 0.5), 2.0))
    assert "2 of 3 heads" in str(KVSettings(((2.0, 9.0), 9.0)).note(PLAN))
