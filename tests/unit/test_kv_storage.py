"""Packed K/V: what is read is what was packed, nothing is packed twice, bytes are bytes held, bad input is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_naive import staggered_by
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from flowcache_core.errors import NotFiniteError, SettingError
from flowcache_core.kv import COMPRESSORS, ImportanceRedundancy, Random, Recent, SinkWindow, size
from flowcache_core.kv.cache import KVCache
from flowcache_core.kv.compressor import Compressor
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.spec import KVSpec
from flowcache_core.kv.storage import STORAGES, Centroid, Int2, Int4, Int8, Plain
from flowcache_core.kv.storage.base import Packed, Storage
from flowcache_core.kv.storage.codec import Codec
from flowcache_core.kv.storage.packing import pack, unpack
from flowcache_core.kv.storage.ranges import ByChannel, ByToken
from flowcache_core.plan.base import Chunk, Plan
from flowcache_core.plan.blockwise import blockwise
from flowcache_core.plan.window import window

SPEC = KVSpec(layers=2, kv_heads=2, head_dim=16, tokens_per_frame=8, branches=2, batch=2, query_heads=4)
PACKED = {name: kind for name, kind in STORAGES.items() if kind is not Plain}


def ticks(cache: KVCache, seed: int = 0, scale: float = 1.0) -> Iterator[list[Chunk]]:
    """Run the cache's plan with random K/V; yields the chunks of every tick before any of them is finished."""
    g, plan, spec = torch.Generator().manual_seed(seed), cache.plan, cache.spec
    for tick in plan.ticks:
        chunks = [plan.chunks[item.chunk] for item in tick.steps]
        for item, chunk in zip(tick.steps, chunks):
            if item.step == 0:
                cache.begin(chunk)
            shape = (spec.branches * spec.batch, chunk.frames * spec.tokens_per_frame, spec.head_dim)
            for layer in range(spec.layers):
                k, v, q = (scale * torch.randn(shape[0], heads, *shape[1:], generator=g) for heads in (2, 2, 4))
                cache.write(layer, range(spec.branches), chunk, k, v)
                cache.observe(layer, range(spec.branches), chunk, q)
        yield chunks
        for item, chunk in zip(tick.steps, chunks):
            if item.step == plan.steps - 1:
                cache.commit(chunk)


def kv(storage: Storage, compressor: Compressor | None = None, budget: float | None = None) -> KVSettings:
    return KVSettings(budget=budget, compressor=compressor, storage=storage)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_is_real_and_lossless(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 5, 24), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.nbytes == 3 * 5 * 24 * bits // 8
    assert torch.equal(unpack(packed, bits), codes)


@pytest.mark.parametrize("codec", [ByChannel(16, 8), ByToken(16, 8, 8), ByChannel(16, 4), ByToken(16, 2, 4)])
def test_a_code_is_at_most_half_a_step_off_within_the_range(codec: ByChannel | ByToken) -> None:
    """Eight bits keep the whole range; with fewer, what lies between lowest and highest code is as near."""
    tokens = torch.randn(2, 3, 40, 16) * torch.logspace(-2, 2, 16)
    entry = codec.fit(tokens)
    rows, out = codec.encode(tokens, entry), torch.empty_like(tokens)
    slot = torch.zeros(2, 3, 40, dtype=torch.int64)
    codec.decode(rows, {name: shared.unsqueeze(2) for name, shared in entry.items()}, slot, out)
    by_channel = isinstance(codec, ByChannel)
    low, step = (entry[n].float().unsqueeze(-2) for n in ("low", "step")) if by_channel else (
        rows[n].float().repeat_interleave(16 // rows[n].shape[-1], -1) for n in ("low", "step"))  # fmt: skip
    inside = (tokens >= low - step / 2) & (tokens <= low + step * (2**codec.bits - 0.5))
    assert inside.float().mean() > (0.97 if codec.bits == 8 else 0.5)
    assert ((out - tokens).abs() <= step * 0.501 + 1e-6)[inside].all()


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_more_bits_are_nearer(bits: int) -> None:
    """Mean squared error of standard normal keys and values, which theory gives to within the group's range."""
    plan = blockwise(6, 2, 1)
    most = {8: 2e-4, 4: 2e-2, 2: 0.2}[bits]
    exact, packed = KVCache(SPEC, KVSettings(), plan), KVCache(SPEC, kv(STORAGES[f"int{bits}"]()), plan)
    for a, b in zip(ticks(exact), ticks(packed)):
        for layer in range(2):
            for ours, theirs in zip(packed.context(layer, range(2), b[0]), exact.context(layer, range(2), a[0])):
                own = b[0].frames * SPEC.tokens_per_frame
                assert torch.equal(ours[:, :, -own:], theirs[:, :, -own:])  # active: as computed
                if ours.shape[2] > own:
                    error = (ours - theirs)[:, :, :-own].square().mean().item()
                    assert most / 50 < error < most


@pytest.mark.parametrize("name", sorted(PACKED))
@pytest.mark.parametrize("compressor", [None, *sorted(name for name, one in COMPRESSORS.items() if not one.merges)])
def test_what_was_packed_once_is_moved_and_never_packed_again(name: str, compressor: str | None) -> None:
    """Every token of history reads, to the bit, as it did when its chunk was packed; after any number of evictions."""
    plan = window(frames=24, chunk_frames=2, steps=4)
    budget = None if compressor is None else 3.0
    cache = KVCache(SPEC, kv(PACKED[name](), None if compressor is None else COMPRESSORS[compressor](), budget), plan)
    first_read: dict[tuple[int, ...], Tensor] = {}
    compared = 0
    for chunks in ticks(cache):
        for layer in range(2):
            clean, positions = cache.layouts[layer].clean_tokens, cache._layers[layer].positions
            keys, values = cache.context(layer, range(2), chunks[0])
            both = torch.stack((keys, values)).unflatten(1, (2, 2))[..., :clean, :].clone()
            for stream in [(b, n, h) for b in range(2) for n in range(2) for h in range(2)]:
                own = torch.arange(clean) if positions is None else positions[stream][:clean]
                for at, position in enumerate(own.tolist()):
                    token = both[(slice(None), *stream)][:, at]
                    known = first_read.setdefault((layer, *stream, position), token)
                    compared += 1
                    assert torch.equal(known, token), (layer, stream, position)
    assert compared > 2 * len(first_read)


@pytest.mark.parametrize("name", sorted(PACKED))
def test_bytes_are_those_held_and_known_before(name: str) -> None:
    plan = blockwise(16, 2, 1)
    cache = KVCache(SPEC, kv(PACKED[name](exact_recent=1.0), ImportanceRedundancy(), 3.0), plan)
    expected = cache.peak_bytes
    for chunks in ticks(cache):
        cache.context(1, range(2), chunks[0])
    held = {id(t): t for layer in cache._layers for t in layer.tokens.tensors()}
    beside = sum(t.nbytes for layer in cache._layers for t in (layer.positions, *layer.queries.values()))
    assert cache.bytes == expected == sum(t.nbytes for t in held.values()) + beside
    assert cache.read_bytes == cache.most_read_bytes() > 0


def test_bits_count_in_bytes() -> None:
    """A long history at head size 128: four bits and two, with scales, sinks and the chunk that is active."""
    spec = KVSpec(1, 1, 128, tokens_per_frame=64, branches=1, batch=1, dtype=torch.bfloat16)
    plan = blockwise(300, 3, 1)
    whole = size.peak_bytes(spec, KVSettings(), plan)
    share = {name: size.peak_bytes(spec, kv(kind()), plan) / whole for name, kind in PACKED.items()}
    assert 0.50 < share["int8"] < 0.56 and 0.26 < share["int4"] < 0.31 and 0.14 < share["int2"] < 0.18
    assert share["centroid"] < 0.26


def test_a_table_never_grows_whatever_is_left_of_the_groups() -> None:
    """Random tokens of 200 chunks: more groups than slots. What is packed again stays near what it was."""
    compressor, plan = Random(), blockwise(400, 2, 1)
    spec = replace(SPEC, layers=1, branches=1)
    short = size.peak_bytes(spec, kv(Int4(), compressor, 4.0), blockwise(40, 2, 1))
    packed = KVCache(spec, kv(Int4(), compressor, 4.0), plan)
    exact = KVCache(spec, KVSettings(4.0, compressor), plan)
    assert packed.bytes <= packed.peak_bytes == short
    worst = 0.0
    for a, b in zip(ticks(exact), ticks(packed)):
        ours, theirs = packed.context(0, range(1), b[0])[0], exact.context(0, range(1), a[0])[0]
        worst = max(worst, (ours - theirs).square().mean().item())
    assert worst < 0.03  # of variance 1; a wrong slot would leave about 2
    assert int(packed._layers[0].tokens.slots.max()) < packed._layers[0].tokens._slots.total


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(PACKED)), st.sampled_from(sorted(COMPRESSORS)), st.sampled_from([1.0, 1.6, 3.0, None]),
    st.sampled_from([0.0, 0.4, 1.0, 9.0]), st.sampled_from([0.0, 0.7, 1.0]), st.integers(0, 5),
    st.lists(st.integers(1, 3), min_size=3, max_size=7), st.integers(1, 3),
)  # fmt: skip
def test_any_mixture_of_exact_and_packed_stays_near_what_was_written(
    name: str, method: str, budget: float | None, recent: float, sink: float, key_group: int, frames: list[int], n: int
) -> None:
    """Random chunk sizes, sinks, recent chunks and groups. By place both caches keep the same tokens."""
    plan: Plan = staggered_by([i * n for i in range(len(frames))], frames, 0, steps=3)
    storage = PACKED[name](exact_recent=recent, exact_sink=sink)
    if isinstance(storage, Int8 | Int4 | Int2):
        storage = replace(storage, key_group=key_group)
    by_place = COMPRESSORS[method].by_place
    compressor = Recent() if not by_place or budget is None or budget < COMPRESSORS[method]().min_budget else (
        COMPRESSORS[method]())  # fmt: skip
    spec = replace(SPEC, layers=1, batch=1)
    packed = KVCache(spec, kv(storage, compressor if budget else None, budget), plan)
    exact = KVCache(spec, KVSettings(budget, compressor if budget else None), plan)
    for a, b in zip(ticks(exact), ticks(packed)):
        for mine, other in zip(a, b):
            for ours, theirs in zip(packed.context(0, range(2), other), exact.context(0, range(2), mine)):
                assert (ours - theirs).square().mean() < 0.5
                clean = packed.layouts[0].clean_tokens
                newest = min(clean, round(recent * max(frames) * spec.tokens_per_frame))
                assert torch.equal(ours[:, :, clean:], theirs[:, :, clean:])
                assert torch.equal(ours[:, :, clean - newest : clean], theirs[:, :, clean - newest : clean])
                first = min(clean, round(sink * max(frames) * spec.tokens_per_frame))
                if budget is None:
                    assert torch.equal(ours[:, :, :first], theirs[:, :, :first])


@pytest.mark.parametrize("name", sorted(PACKED))
def test_history_that_fits_in_the_exact_ends_changes_no_bit(name: str) -> None:
    plan = blockwise(8, 2, 2)
    packed = KVCache(SPEC, kv(PACKED[name](exact_recent=2.0, exact_sink=2.0)), plan)
    exact = KVCache(SPEC, KVSettings(), plan)
    for a, b in zip(ticks(exact), ticks(packed)):
        for ours, theirs in zip(packed.context(0, range(2), b[0]), exact.context(0, range(2), a[0])):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", sorted(STORAGES))
def test_runs_are_deterministic(name: str) -> None:
    plan = blockwise(12, 2, 1)
    found = []
    for _ in range(2):
        cache = KVCache(SPEC, kv(STORAGES[name](), ImportanceRedundancy(), 2.0), plan)
        found.append([[t.clone() for t in cache.context(1, range(2), chunks[0])] for chunks in ticks(cache)])
    for once, again in zip(*found):
        assert all(torch.equal(a, b) for a, b in zip(once, again))


def test_heads_a_few_at_a_time_give_the_same_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped-query attention, and the newest tokens alone."""
    attend = partial(scaled_dot_product_attention, enable_gqa=True)
    plan = blockwise(8, 2, 1)
    cache = KVCache(SPEC, kv(Int4()), plan)
    for chunks in ticks(cache):
        q = torch.randn(4, 4, 16, 16)
        whole = [cache.attend(1, range(2), chunks[0], q, attend, newest) for newest in (0, 20)]
        keys, values = cache.context(1, range(2), chunks[0])
        assert torch.equal(whole[0], attend(q, keys, values))
        assert torch.equal(whole[1], attend(q, keys[:, :, -20:], values[:, :, -20:]))
        with monkeypatch.context() as small:
            small.setattr(size, "READ_BYTES", 1)
            parts = [cache.attend(1, range(2), chunks[0], q, attend, newest) for newest in (0, 20)]
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, parts))


def test_a_shared_chunk_reads_alike_in_both_branches() -> None:
    for compressor, budget in ((None, None), (SinkWindow(sink=1.0), 2.0)):
        plan = blockwise(12, 2, 1)
        cache = KVCache(SPEC, kv(Int2(exact_recent=0.5), compressor, budget), plan)
        shape, finished = (2, 2, 16, 16), None
        for chunk in plan.chunks:
            cache.begin(chunk)
            for layer in range(2):
                for branch in range(2):
                    k, v = torch.randn(*shape), torch.randn(*shape)
                    cache.write(layer, range(branch, branch + 1), chunk, k, v)
            if finished is not None:
                keys, _ = cache.context(1, range(2), chunk)
                assert not torch.equal(keys[:2, :, :-16], keys[2:, :, :-16])
                cache.share(finished, 0, 1)
                keys, values = cache.context(1, range(2), chunk)
                assert torch.equal(keys[:2, :, :-16], keys[2:, :, :-16])
                assert torch.equal(values[:2, :, :-16], values[2:, :, :-16])
                assert not torch.equal(keys[:2, :, -16:], keys[2:, :, -16:])
            cache.commit(chunk)
            finished = chunk


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_layer_and_chunk(value: float) -> None:
    plan = blockwise(6, 2, 1)
    cache = KVCache(SPEC, kv(Int4()), plan)
    cache.begin(plan.chunks[0])
    for layer in range(2):
        k, v = torch.randn(4, 2, 16, 16), torch.randn(4, 2, 16, 16)
        if layer == 1:
            k[2, 1, 5, 3] = value
        cache.write(layer, range(2), plan.chunks[0], k, v)
    with pytest.raises(NotFiniteError, match="keys of chunk 0 in layer 1"):
        cache.commit(plan.chunks[0])


@pytest.mark.parametrize(
    ("storage", "head_dim", "text"),
    [
        (Int4(value_group=6), 16, "value_group: got 6, accepted: a divisor of the model's head_dim 16"),
        (Centroid(residual_group=5), 16, "residual_group: got 5, accepted: a divisor of the model's head_dim 16"),
        (Int2(), 6, "2 bits, heads of 6.*a multiple of 4 channels"),
    ],
)
def test_groups_that_do_not_fit_the_model(storage: Packed, head_dim: int, text: str) -> None:
    with pytest.raises(SettingError, match=text):
        KVCache(replace(SPEC, head_dim=head_dim), kv(storage), blockwise(4, 2, 1))


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Int4(key_group=-1), "key_group"),
        (lambda: Int8(exact_recent=float("nan")), "exact_recent"),
        (lambda: Int8(exact_sink=-1.0), "exact_sink"),
        (lambda: Centroid(centroids=257), "centroids"),
        (lambda: Centroid(iterations=0), "iterations"),
        (lambda: KVSettings(storage=Int4(), dtype=torch.float8_e4m3fn), "dtype"),
        (lambda: KVSettings(storage="int4"), "storage"),  # type: ignore[arg-type]
    ],
)
def test_settings_that_cannot_work(make, field: str) -> None:
    with pytest.raises(SettingError, match=f"^{field}: got"):
        make()


def test_every_codec_says_its_rows_and_table() -> None:
    """What is declared is what comes out: shapes and dtypes of rows and entries."""
    for kind in PACKED.values():
        storage = kind()
        assert isinstance(storage, Packed)
        for codec in storage.codecs(16, 64)[:2]:
            assert isinstance(codec, Codec)
            tokens = torch.randn(2, 3, 64, 16)
            entry = codec.fit(tokens)
            assert {n: (tuple(t.shape[2:]), t.dtype) for n, t in entry.items()} == codec.table
            rows = codec.encode(tokens, entry)
            assert {n: (t.shape[-1], t.dtype) for n, t in rows.items()} == codec.rows
