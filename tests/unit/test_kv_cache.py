"""The cache against a naive one made of lists, and its promises about memory, views and errors."""

from __future__ import annotations

import gc
import random
import weakref
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from kv_naive import SPEC, NaiveCache, blocks, cases, compute, run, staggered_by
from torch import Tensor

from benchmarks.redundancy import PeakBytes
from flowcache_core.errors import SettingError
from flowcache_core.kv import COMPRESSORS, ImportanceRedundancy, Recent
from flowcache_core.kv.cache import KVCache
from flowcache_core.kv.compressor import Compressor, Granularity
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.spec import KVSpec
from flowcache_core.kv.storage import Int8, Plain, Storage
from flowcache_core.kv.storage.tokens import move_left
from flowcache_core.plan.base import Plan
from flowcache_core.plan.blockwise import blockwise
from flowcache_core.plan.window import window


def kept_per_frame(cache: KVCache, layer: int) -> torch.Tensor:
    """Share of every latent frame's tokens held clean, mean over branches, batch and heads: ``[frames]``."""
    buffer, clean = cache._buffer(layer), cache.layouts[layer].clean_tokens
    if buffer.positions is None:
        frame = torch.arange(clean) // cache.spec.tokens_per_frame
    else:
        frame = buffer.positions[..., :clean].flatten().cpu() // cache.spec.tokens_per_frame
    streams = 1 if buffer.positions is None else buffer.positions[..., 0].numel()
    return torch.bincount(frame, minlength=cache.plan.frames) / (streams * cache.spec.tokens_per_frame)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(cases())
def test_equals_a_naive_cache(case: tuple[KVSpec, Plan, tuple[float | None, ...], Compressor, int]) -> None:
    """Random plans, sizes and budgets; some steps are reused, some branches computed one by one."""
    spec, plan, budgets, compressor, seed = case
    cache = KVCache(spec, KVSettings(None if None in budgets else budgets, compressor), plan)
    naive = NaiveCache(spec, plan, budgets, compressor)
    assert [layout.capacity for layout in cache.layouts] == naive.capacity
    held = cache.bytes
    g, coin, group = torch.Generator().manual_seed(seed), random.Random(seed), 1 + seed % 3

    def begin(index: int) -> None:
        before = list(naive.events)
        naive.begin(index)
        result = cache.begin(plan.chunks[index])
        fired = [now > then for now, then in zip(naive.events, before, strict=True)]
        assert fired == ([need is not None for need in result.layers] if result else [False, False])

    def step(index: int) -> None:
        together = [range(spec.branches)]
        for layer in range(spec.layers):
            for branches in coin.choice([together, [range(b, b + 1) for b in range(spec.branches)]]):
                k, v, q = blocks(spec, plan.chunks[index], g, group, len(branches))
                naive.write(layer, branches, index, k, v, q)
                cache.write(layer, branches, plan.chunks[index], k, v)
                cache.observe(layer, branches, plan.chunks[index], q)

    def compare() -> None:
        for layer in range(spec.layers):
            for chunk in naive.active:
                for branches in (range(spec.branches), range(spec.branches - 1, spec.branches)):
                    k, v = cache.context(layer, branches, plan.chunks[chunk])
                    expected = naive.context(layer, branches, chunk)
                    assert torch.equal(k, expected[0])
                    assert torch.equal(v, expected[1])

    for index in range(plan.prefix_chunks):
        begin(index)
        step(index)
        compare()
        naive.commit(index)
        cache.commit(plan.chunks[index])
    for tick in plan.ticks:
        for item in tick.steps:
            if item.step == 0:
                begin(item.chunk)
        for item in tick.steps:
            if item.step == 0 or coin.random() < 0.5:  # a reused step writes nothing
                step(item.chunk)
        compare()
        for item in tick.steps:
            if item.step == plan.steps - 1:
                naive.commit(item.chunk)
                cache.commit(plan.chunks[item.chunk])
    kept = kept_per_frame(cache, 0)
    own = [t[0] // spec.tokens_per_frame for s in naive.streams for t in naive.clean[(0, *s)]]
    whole = len(naive.streams) * spec.tokens_per_frame
    assert torch.allclose(kept, torch.bincount(torch.tensor(own), minlength=plan.frames) / whole)
    sampled = sum(t.numel() * t.element_size() for layer in cache._layers for t in layer.queries.values())
    assert cache.bytes == held + sampled


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
@pytest.mark.parametrize("query_granularity", ["token", "frame", "chunk"])
def test_peak_bytes_are_all_that_is_held_in_the_end(query_granularity: Granularity, dtype: torch.dtype) -> None:
    """K/V, positions and sampled queries of grouped-query attention; one layer is long enough to need none of these."""
    spec, plan = replace(SPEC, query_heads=6), blockwise(10, 2, 1)
    compressor = ImportanceRedundancy(query_granularity=query_granularity)
    cache = KVCache(spec, KVSettings((1.0, 9.0), compressor, dtype), plan)
    expected = cache.peak_bytes
    assert cache.bytes < expected
    g = torch.Generator().manual_seed(0)
    for chunk in plan.chunks:
        cache.begin(chunk)
        for layer in range(spec.layers):
            k, v, q = blocks(spec, chunk, g, group=3)
            cache.write(layer, range(2), chunk, k, v)
            cache.observe(layer, range(2), chunk, q)
        cache.commit(chunk)
    rows = {"token": 6, "frame": 3, "chunk": 6}[query_granularity]
    streams, small, long = 2, 4 * 3, 10 * 3  # tokens of each layer's buffer
    kv = streams * (small + long) * 2 * 2 * 4 * dtype.itemsize
    assert cache.bytes == expected == kv + streams * small * 2 * 4 + streams * 6 * rows * 4 * 4


def contexts(cache: KVCache) -> list[Tensor]:
    found = []
    for tick in run(cache):
        for item in tick.steps:
            for layer in range(cache.spec.layers):
                found += [t.clone() for t in cache.context(layer, range(2), cache.plan.chunks[item.chunk])]
    return found


@pytest.mark.parametrize("name", sorted(COMPRESSORS))
@pytest.mark.parametrize("budget", [6, 10, 1000.0])
def test_a_budget_as_long_as_the_history_changes_no_bit(name: str, budget: float) -> None:
    plan = window(frames=20, chunk_frames=2, steps=4)
    plain = KVCache(SPEC, KVSettings(), plan)
    roomy = KVCache(SPEC, KVSettings(budget, COMPRESSORS[name]()), plan)
    assert roomy.bytes == plain.bytes
    for ours, theirs in zip(contexts(roomy), contexts(plain), strict=True):
        assert torch.equal(ours, theirs)
    assert roomy.bytes == plain.bytes


@pytest.mark.parametrize("name", sorted(name for name, kind in COMPRESSORS.items() if not kind.merges))
@pytest.mark.parametrize("granularity", ["token", "frame", "chunk"])
def test_what_is_kept_is_what_was_written(name: str, granularity: str) -> None:
    """Keys carry their own position, so a gathered K/V can be traced to where it came from."""
    plan = window(frames=17, chunk_frames=2, steps=4)
    cache = KVCache(SPEC, KVSettings(2.25, COMPRESSORS[name](key_granularity=granularity)), plan)
    g = torch.Generator().manual_seed(4)
    everything = torch.randn(2, 2, 17 * 3, 4, generator=g)  # branch, head, token, d
    for _ in run(cache):
        chunk = plan.chunks[cache.layouts[0].active[-1]]
        for index in cache.layouts[0].active:
            own = everything[:, :, plan.chunks[index].first_frame * 3 : plan.chunks[index].end_frame * 3]
            for layer in range(2):
                cache.write(layer, range(2), plan.chunks[index], own + layer, own - layer)
        for layer in range(2):
            keys, values = cache.context(layer, range(2), chunk)
            assert torch.allclose(keys - layer, values + layer, atol=1e-5)
            clean = cache.layouts[layer].clean_tokens
            positions = cache._layers[layer].positions
            assert positions is not None
            places = positions[:, 0, :, :clean].long()
            assert (places.diff(dim=-1) > 0).all()
            expected = everything.gather(2, places.unsqueeze(-1).expand(*places.shape, 4))
            assert torch.equal(keys[:, :, :clean], expected + layer)
    assert cache.layouts[0].capacity == round(2.25 * 6) + 4 * 6


def test_bytes_do_not_grow_with_the_video() -> None:
    for compressor in (ImportanceRedundancy(), Recent()):
        sizes = set()
        for chunks in (20, 100, 400):
            cache = KVCache(SPEC, KVSettings(2, compressor), blockwise(frames=chunks, chunk_frames=1, steps=1))
            for _ in run(cache):
                assert cache.tokens <= cache.capacity_tokens == 9
            sizes.add(cache.bytes)
        tokens = 9 * SPEC.layers * SPEC.branches * SPEC.batch * SPEC.kv_heads
        sampled = 0 if isinstance(compressor, Recent) else 3 * SPEC.layers * SPEC.branches * SPEC.kv_heads * 4 * 4
        assert sizes == {tokens * (2 * SPEC.head_dim * 4 + 4) + sampled}


def test_compression_works_layer_by_layer_and_branch_by_branch() -> None:
    """Its temporary memory is a small multiple of one branch of one layer, however many layers there are."""
    spec = replace(SPEC, layers=12, head_dim=64, tokens_per_frame=50)
    plan = blockwise(frames=20, chunk_frames=2, steps=1)
    cache = KVCache(spec, KVSettings(4, ImportanceRedundancy()), plan)
    ticks = run(cache)
    for _ in range(6):
        next(ticks)
    cache.commit(plan.chunks[5])
    with PeakBytes() as counter:
        assert cache.begin(plan.chunks[6]) is not None
    one = cache._layers[0].tokens.keys[0].numel() * 4
    assert counter.peak < 4 * one
    assert cache.bytes > 40 * one


def test_context_is_a_view_of_the_buffer() -> None:
    plan = window(frames=20, chunk_frames=2, steps=4)
    cache = KVCache(SPEC, KVSettings(1), plan)
    for tick in run(cache):
        for item in tick.steps:
            chunk = plan.chunks[item.chunk]
            for which, buffer in enumerate((cache._layers[1].tokens.keys, cache._layers[1].tokens.values)):
                view = cache.context(1, range(1, 2), chunk)[which]
                assert view.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()
                assert view.data_ptr() == buffer[1].data_ptr()
                assert view[0, 0].is_contiguous()
                assert view.shape == (1, 2, cache.layouts[1].context_end(item.chunk), 4)


def test_figures() -> None:
    plan = window(frames=20, chunk_frames=2, steps=4)  # 10 chunks of 6 tokens, one step per stage
    cache = KVCache(SPEC, KVSettings((1, 2)), plan)
    assert (cache.capacity_tokens, cache.budget_tokens, cache.tokens) == (36, 12, 0)
    seen = []
    for tick in run(cache):
        newest = plan.chunks[tick.steps[-1].chunk]
        seen.append(tuple(n // 6 for n in (cache.clean_tokens, cache.tokens, cache.context_tokens(newest))))
    assert seen[:4] == [(0, n, n) for n in (1, 2, 3, 4)]
    assert seen[4:6] == [(1, 5, 5), (2, 6, 6)]
    assert seen[6:10] == [(2, 6, 6)] * 4
    assert KVCache(SPEC, KVSettings(), plan).budget_tokens is None


def test_result_names_the_layers_that_gave_way() -> None:
    plan = blockwise(frames=6, chunk_frames=1, steps=1)
    cache = KVCache(SPEC, KVSettings((1, 2), Recent()), plan)
    results = []
    g = torch.Generator()
    for chunk in plan.chunks:
        results.append(cache.begin(chunk))
        compute(cache, chunk, g)
        cache.commit(chunk)
    assert results[:2] == [None, None]
    second, third = results[2], results[3]
    assert second is not None and third is not None
    assert (second.chunk, second.tokens_before, second.tokens_after, second.layers[1]) == (2, 6, 3, None)
    assert (third.tokens_before, third.tokens_after) == (9, 6)
    assert torch.equal(kept_per_frame(cache, 0), torch.tensor([0.0, 0, 0, 0, 1, 1]))
    assert torch.equal(kept_per_frame(cache, 1), torch.tensor([0.0, 0, 0, 1, 1, 1]))


def test_a_reused_step_leaves_what_was_written() -> None:
    plan = blockwise(frames=2, chunk_frames=1, steps=3)
    cache = KVCache(SPEC, KVSettings(), plan)
    cache.begin(plan.chunks[0])
    k, v, _ = blocks(SPEC, plan.chunks[0], torch.Generator())
    for layer in range(2):
        cache.write(layer, range(2), plan.chunks[0], k + layer, v)
    cache.commit(plan.chunks[0])
    cache.begin(plan.chunks[1])
    for layer in range(2):
        cache.write(layer, range(2), plan.chunks[1], k - 9, v)
        assert torch.equal(cache.context(layer, range(2), plan.chunks[1])[0], torch.cat([k + layer, k - 9], dim=2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_storage_in_another_dtype(dtype: torch.dtype) -> None:
    plan = window(frames=20, chunk_frames=2, steps=4)
    full, small = (KVCache(SPEC, KVSettings(1, Recent(), dtype=d), plan) for d in (None, dtype))
    positions = full._layers[0].positions
    assert positions is not None
    kv_bytes = full.bytes - 2 * positions.numel() * 4
    assert small.bytes == full.bytes - kv_bytes + kv_bytes * dtype.itemsize // 4
    for ours, theirs in zip(contexts(small), contexts(full), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)  # whole numbers up to 4 are exact in all of them


def test_scores_from_fp8_keys_match_scores_from_their_values() -> None:
    plan = blockwise(frames=8, chunk_frames=2, steps=1)
    compressor = ImportanceRedundancy(mix_lambda=0.5)
    kept = []
    for dtype in (None, torch.float8_e4m3fn):
        cache = KVCache(SPEC, KVSettings(1.5, compressor, dtype=dtype), plan)
        list(run(cache, seed=3))
        positions = cache._layers[1].positions
        assert positions is not None
        kept.append(positions[..., : cache.clean_tokens])
    assert torch.equal(kept[0], kept[1])


def test_fp8_saturates() -> None:
    plan = blockwise(frames=1, chunk_frames=1, steps=1)
    cache = KVCache(SPEC, KVSettings(dtype=torch.float8_e4m3fn), plan)
    cache.begin(plan.chunks[0])
    k = torch.full((2, 2, 3, 4), 1e6)
    cache.write(0, range(2), plan.chunks[0], k, -k)
    keys, values = cache.context(0, range(2), plan.chunks[0])
    assert (keys == 448).all() and (values == -448).all()


def test_no_autograd_history_is_kept() -> None:
    plan = blockwise(frames=4, chunk_frames=1, steps=1)
    cache = KVCache(SPEC, KVSettings(1, ImportanceRedundancy()), plan)
    cache.begin(plan.chunks[0])
    k = torch.randn(2, 2, 3, 4, requires_grad=True)
    cache.write(0, range(2), plan.chunks[0], k, k)
    cache.observe(0, range(2), plan.chunks[0], k)
    held = (*cache.context(0, range(2), plan.chunks[0]), cache._layers[0].queries[0])
    assert [tensor.requires_grad for tensor in held] == [False] * 3


def test_only_the_sampled_queries_are_held() -> None:
    spec = replace(SPEC, tokens_per_frame=40)
    plan = blockwise(frames=8, chunk_frames=2, steps=1)
    for granularity, rows in (("token", 50), ("frame", 40), ("chunk", 80)):
        cache = KVCache(spec, KVSettings(1, ImportanceRedundancy(query_granularity=granularity)), plan)
        cache.begin(plan.chunks[0])
        q = torch.randn(2, 6, 80, 4)
        cache.observe(1, range(2), plan.chunks[0], q)
        assert torch.equal(torch.stack([cache._layers[1].queries[b][0] for b in range(2)]), q[:, :, -rows:])
        assert cache._layers[1].queries[0].untyped_storage().nbytes() == 6 * rows * 4 * 4


def test_counting_without_memory() -> None:
    """On the meta device a whole run costs nothing and still tells its size."""
    plan = window(frames=20, chunk_frames=2, steps=4)
    real, meta = (KVCache(replace(SPEC, device=device), KVSettings(1), plan) for device in ("cpu", "meta"))
    sizes = [[(cache.tokens, cache.bytes) for _ in run(cache)] for cache in (real, meta)]
    assert sizes[0] == sizes[1]


def test_release_frees_everything() -> None:
    plan = blockwise(frames=4, chunk_frames=1, steps=1)
    cache = KVCache(SPEC, KVSettings(1, ImportanceRedundancy()), plan)
    list(run(cache))
    held = [weakref.ref(t) for layer in cache._layers for t in (*layer.tokens.tensors(), layer.positions)]
    held += [weakref.ref(q) for layer in cache._layers for q in layer.queries.values()]
    assert len(held) == 2 * 3 + 2 * 2
    cache.release()
    gc.collect()
    assert [ref() for ref in held] == [None] * len(held)
    assert cache.bytes == 0
    for call in (cache.begin, cache.commit, lambda c: cache.context(0, range(2), c)):
        with pytest.raises(RuntimeError, match="released"):
            call(plan.chunks[0])
    cache.release()


def test_unwritten_context_is_refused() -> None:
    """Uninitialised memory must never be attended to: not the chunk's own slot, not an earlier chunk's."""
    plan = window(frames=6, chunk_frames=1, steps=4)
    cache = KVCache(SPEC, KVSettings(), plan)
    k, v, _ = blocks(SPEC, plan.chunks[0], torch.Generator())
    cache.begin(plan.chunks[0])
    with pytest.raises(RuntimeError, match="never computed"):
        cache.context(0, range(2), plan.chunks[0])
    cache.write(0, range(1), plan.chunks[0], k[:1], v[:1])
    cache.context(0, range(1), plan.chunks[0])
    with pytest.raises(RuntimeError, match="never computed"):
        cache.context(0, range(2), plan.chunks[0])
    cache.commit(plan.chunks[0])
    cache.begin(plan.chunks[1])
    cache.write(0, range(2), plan.chunks[1], k, v)
    with pytest.raises(RuntimeError, match="chunk 1 needs chunk 0, never computed in layer 0"):
        cache.context(0, range(2), plan.chunks[1])


def test_wrong_shapes_and_budgets_are_refused() -> None:
    plan = blockwise(frames=4, chunk_frames=1, steps=1)
    cache = KVCache(SPEC, KVSettings(), plan)
    cache.begin(plan.chunks[0])
    good = torch.zeros(2, 2, 3, 4)
    for k, v in ((good[:1], good[:1]), (good, good[:, :1]), (good[:, :, :2], good), (good[..., :3], good)):
        with pytest.raises(ValueError, match="expected"):
            cache.write(0, range(2), plan.chunks[0], k, v)
    with pytest.raises(SettingError, match="budget"):
        KVCache(SPEC, KVSettings((1, 2, 3)), plan)


@pytest.mark.parametrize("shift", [1, 2, 5, 12])
@pytest.mark.parametrize("block", [1, 3, 100])
def test_move_left_over_itself(shift: int, block: int) -> None:
    tokens = torch.arange(40.0).reshape(1, 20, 2)
    expected = tokens.clone()
    expected[:, 12 - shift : 19 - shift] = tokens[:, 12:19]
    move_left(tokens, 12, 7, shift, block)
    assert torch.equal(tokens[:, : 19 - shift], expected[:, : 19 - shift])


@pytest.mark.parametrize("storage", [Plain(), Int8()])
def test_at_finish_no_more_than_the_budget_is_ever_clean(storage: Storage) -> None:
    """Three chunks side by side, budget 1: what is active stays as written, and the tokens kept are whole ones."""
    plan = staggered_by([0, 1, 2, 3, 5], [2] * 5, 0, 4)
    spec = KVSpec(layers=2, kv_heads=2, head_dim=8, tokens_per_frame=3, branches=2, batch=1)
    settings = KVSettings(1.0, ImportanceRedundancy(reference_order=True), storage=storage, at_finish=True)
    cache, told = KVCache(spec, settings, plan), []
    branches, g = range(2), torch.Generator().manual_seed(3)
    for tick in plan.ticks:
        written = {}
        for item in tick.steps:
            chunk = plan.chunks[item.chunk]
            if item.step == 0:
                assert cache.begin(chunk) is None  # there is room: it was made when the chunk before finished
            k, v, q = blocks(spec, chunk, g)
            for layer in range(2):
                cache.write(layer, branches, chunk, k, v)
                cache.observe(layer, branches, chunk, q)
            written[item.chunk] = k
        for item in tick.steps:
            if item.step == plan.steps - 1:
                result = cache.commit(plan.chunks[item.chunk])
                told.append(None if result is None else (result.tokens_before, result.tokens_after))
                last = item.chunk == plan.chunks[-1].index
                assert last or all(layout.clean_tokens <= 6 for layout in cache.layouts)
                for other in cache.layouts[0].active:
                    start, end = cache.layouts[0].span(other)
                    keys, _ = cache.context(0, branches, plan.chunks[other])
                    assert torch.equal(keys[:, :, start:end], written[other])
    assert told == [None, (12, 6), (12, 6), (12, 6), None]
    positions = cache._layers[1].positions
    assert positions is not None and bool((positions[..., :6].sort(-1).values.diff(dim=-1) > 0).all())
