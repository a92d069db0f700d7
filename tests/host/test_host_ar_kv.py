"""The K/V budget in the host's own AR sampler."""

from __future__ import annotations

import pytest
import torch
from comfy.ldm.flux.math import apply_rope1
from host_ar_runs import (
    LONG,
    TOKENS,
    KVSettings,
    Watch,
    errors,
    host_ar,
    kv,
    settings,
    with_kv,
)
from hostkit import (
    HEIGHT,
    SAME,
    WIDTH,
    close,
    hosts,
    latent,
    load,
    module,
    node,
    ours,
    sample,
)
from torch.nn import functional


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.mark.parametrize("name", list(kv.COMPRESSORS))
def test_allocates_budget_and_one_chunk(model, name):
    if kv.COMPRESSORS[name].merges:
        with pytest.raises(errors.SettingError, match=r"method: got 'merge'.*AR Video Sampler \(FlowCache\)"):
            sample(with_kv(model, 2.0, kv.COMPRESSORS[name]()), hosts(), start=latent(161))
        return
    ends = {"sink": 0.5, "recent": 0.5}
    fields = {key: ends[key] for key in ends if key in kv.COMPRESSORS[name].__dataclass_fields__}
    patched = with_kv(model, 1.5, kv.COMPRESSORS[name](**fields))
    watch = Watch(patched)
    out = sample(watch.model, hosts(), start=latent(161))[0]  # 41 latent frames, the last chunk has 2
    assert out.shape[2] == 41 and out.isfinite().all()
    capacity = round(2.5 * 3 * TOKENS)
    assert all(call["allocated"] == [capacity] * 2 for call in watch.calls)
    assert max(max(call["end_after"]) for call in watch.calls) == capacity
    record = settings.last_record(patched)
    rows = kv.COMPRESSORS[name](**fields).query_rows(3 * TOKENS, TOKENS)
    per_layer = 2 * capacity * 24 * 4 + 2 * capacity * 4 + rows * 24 * 4  # K and V, positions of 2 heads, queries
    assert record.kv_bytes == 2 * per_layer
    assert record.started.budget_tokens == round(1.5 * 3 * TOKENS)
    assert [(c.tokens_before, c.tokens_after) for c in record.compressions][:2] == [(48, 36), (60, 36)]
    assert len(record.compressions) == 12


def test_positions_follow_their_tokens_through_every_compression():
    """Keys say where they are from; after any number of compressions the positions kept beside them say the same."""
    spec = module("flowcache_core.kv.spec").KVSpec(2, 2, 4, tokens_per_frame=3, branches=1, batch=2)
    plan = host_ar.plan_of(18, 3, 2, 0)
    host = module("nodes.adapters.host_ar.kv").HostKV(spec, KVSettings(1.5, kv.COMPRESSORS["random"]()), plan)
    caches = [{n: torch.zeros(2, host.capacity_tokens, 2, 4) for n in "kv"} | {"end": 0} for _ in range(2)]
    compressed = 0
    for chunk in plan.chunks:
        compressed += host.begin(chunk, caches) is not None
        for layer, cache in zip(host.layers, caches, strict=True):
            first, end = layer.layout.span(chunk.index)
            cache["k"][:, first:end] = torch.arange(9.0).view(9, 1, 1) + 9 * chunk.index
        host.commit(chunk, caches)
        for layer, cache in zip(host.layers, caches, strict=True):
            clean = layer.layout.clean_tokens
            assert torch.equal(layer.positions[..., :clean], cache["k"][:, :clean, :, 0].transpose(1, 2).int())
    assert compressed == 4


STORED = module("flowcache_core.kv.storage").STORAGES


@pytest.mark.parametrize("storage", ["int8", "int4", "int2", "centroid"])
def test_packed_kv_in_the_host_s_sampler_is_that_of_ours(model, storage):
    """The same blocks, solver and clean pass: what is packed and unpacked is the same, so the videos are."""
    packed = with_kv(model, 1.5, kv.COMPRESSORS["importance-redundancy"](), storage=STORED[storage]())
    theirs, record = sample(packed, hosts(), start=latent(LONG))[0], settings.last_record(packed)
    own = with_kv(model, 1.5, kv.COMPRESSORS["importance-redundancy"](), storage=STORED[storage]())
    mine = sample(own, ours(), start=latent(LONG))[0]
    plain = sample(with_kv(model, 1.5, kv.COMPRESSORS["importance-redundancy"]()), hosts(), start=latent(LONG))[0]
    assert theirs.isfinite().all() and not torch.equal(theirs, plain)
    error = (theirs - plain).square().mean() / plain.square().mean()
    assert 0 < error < (1e-3 if storage == "int8" else 0.5)
    assert record.kv_bytes == settings.last_record(own).kv_bytes and len(record.compressions) == 2
    close(theirs, mine, 1e-3)


@pytest.mark.parametrize("fields", [{"dtype": torch.float16}, {"dtype": torch.bfloat16}])
def test_another_number_format_in_the_host_s_sampler(model, fields):
    """Without a compression the history is the same: only its rounding differs."""
    whole = sample(model, hosts(), start=latent(LONG))[0]
    rounded = sample(with_kv(model, None, **fields), hosts(), start=latent(LONG))[0]
    error = (rounded - whole).square().mean() / whole.square().mean()
    assert 0 < error < 1e-3


def test_settled_tokens_and_drops_at_a_chunk_s_end_in_the_host_s_sampler(model):
    for storage in ("plain", "int8"):
        patched = with_kv(model, 2.0, kv.COMPRESSORS["settled"](), storage=STORED[storage](), at_finish=True)
        assert sample(patched, hosts(), start=latent(LONG))[0].isfinite().all()
        seen = [(one.tokens_before, one.tokens_after) for one in settings.last_record(patched).compressions]
        assert seen == [(3 * 3 * TOKENS, 2 * 3 * TOKENS)]


def test_merged_tokens_are_for_the_other_sampler(model):
    with pytest.raises(errors.SettingError, match="method: got 'merge', accepted: another"):
        sample(with_kv(model, 2.0, kv.COMPRESSORS["merge"]()), hosts(), start=latent(LONG))


def test_budget_per_layer(model):
    watch = Watch(with_kv(model, (1.0, 3.0)))
    sample(watch.model, hosts(), start=latent(LONG))
    assert watch.calls[0]["allocated"] == [2 * 3 * TOKENS, 4 * 3 * TOKENS]


def naive_scores(keys, queries, mix_lambda, kernel):
    """Eq. 9-12 for one head, written out: keys [L, d], queries [n, d]."""
    unit = keys / keys.norm(dim=-1, keepdim=True)
    similar = unit @ unit.T
    similar.fill_diagonal_(0)
    redundancy = torch.softmax(similar.sum(0) / len(keys), -1)
    attention = torch.softmax(queries @ keys.T / keys.shape[-1] ** 0.5, -1).mean(0)
    padded = functional.pad(attention, (kernel // 2, kernel // 2), value=float("-inf"))
    importance = torch.stack([window.max() for window in padded.unfold(0, kernel, 1)])
    return mix_lambda * importance - (1 - mix_lambda) * redundancy


@pytest.mark.parametrize("batch", [1, 2])
def test_every_head_keeps_its_own_best_tokens(model, batch):
    """Layer 1, first compression, against a re-computation from the K/V and the inputs of the self-attention."""
    seen = []
    attention = model.model.diffusion_model.blocks[1].self_attn
    hook = attention.register_forward_pre_hook(lambda _, args: seen.append((args[0].clone(), args[1].clone())))
    compressor = kv.COMPRESSORS["importance-redundancy"](mix_lambda=0.6, pool_kernel=3, query_granularity="frame")
    watch = Watch(with_kv(model, 1.25, compressor), keep_kv=True)
    try:
        sample(watch.model, hosts(), start=latent(33, batch))
    finally:
        hook.remove()
    index = 10  # first call of the third chunk; the call before is the second one's clean pass
    first, clean = watch.calls[index], watch.calls[index - 1]
    assert first["start"] == 6 and clean["sigma"] == 0
    before, after = 2 * 3 * TOKENS, round(1.25 * 3 * TOKENS)
    x, freqs = seen[index - 1]
    rows = slice(-TOKENS, None)
    with torch.inference_mode():
        q = attention.norm_q(attention.q(x[:, rows])).view(batch, TOKENS, 2, 12)
        queries = apply_rope1(q, freqs[:, rows])
        kept = set()
        for item in range(batch):
            for head in range(2):
                old = {n: first["before"][1][n][item, :before, head].double() for n in "kv"}
                scores = naive_scores(old["k"], queries[item, :, head].double(), 0.6, 3)
                best = sorted(sorted(range(before), key=lambda i: -scores[i])[:after])
                for name in "kv":
                    new = first["after"][1][name][item, :after, head].double()
                    assert torch.equal(new, old[name][best])
                kept.add(tuple(best))
    assert len(kept) == 2 * batch  # heads differ, so this is not a common selection


def test_queries_matter(model):
    """Without queries importance would be the same everywhere, so the two ways to sample them would agree."""
    videos = [
        sample(
            with_kv(model, 1.0, kv.COMPRESSORS["importance-redundancy"](mix_lambda=1.0, query_granularity=g)),
            hosts(),
            start=latent(LONG),
        )[0]
        for g in ("frame", "chunk")
    ]
    assert not torch.equal(*videos)


def test_fp8_weights_keep_kv_in_the_dtype_that_computes():
    model = load(dtype=torch.float8_e4m3fn)
    assert model.model.get_dtype() == torch.float8_e4m3fn
    dtypes = set()
    patched = with_kv(model, 1.0)
    watch = Watch(patched, keep_kv=True)
    out = sample(watch.model, hosts(), start=latent(LONG))[0]
    for call in watch.calls:
        dtypes |= {layer["k"].dtype for layer in call["after"]}
    assert dtypes == {model.model.get_dtype_inference()} and out.isfinite().all()


def test_memory_told_to_the_host(model, monkeypatch):
    """What the host estimates before loading: a chunk's activations and the K/V, whatever the video's length."""
    base, original, shapes = model.model, model.model.memory_required, []
    frame = original([1, 16, 1, HEIGHT // 8, WIDTH // 8])

    def estimated(patched, length):
        shapes.clear()
        sample(patched, hosts(), start=latent(length))
        return max(original(shape) for shape in shapes if shape[0] == 1)

    monkeypatch.setattr(base, "memory_required", lambda s, **kw: (shapes.append(list(s)), original(s, **kw))[1])
    kv_bytes = 2 * 2 * (2 * 3 * TOKENS) * (24 * 4 + 4)  # K and V, layers, tokens, width, positions
    wanted = 3 * frame + kv_bytes
    assert wanted <= estimated(with_kv(model, 1.0), LONG) < wanted + frame
    assert wanted <= estimated(with_kv(model, 1.0), 401) < wanted + frame


def test_a_repositioned_sink_in_the_hosts_sampler_is_ours():
    """Our sampler moves the sink when it reads, the host's when history is compressed: the same video."""

    def near(on: bool):
        method = {"method": "sink-window", "sink": 1.0, "reposition": on}
        return node("KVCompressor", model=load(), budget=2.0, method=method, dtype=SAME, device=SAME)

    theirs = sample(near(True), hosts(), start=latent(81))[0]
    close(theirs, sample(near(True), ours(), start=latent(81))[0])
    assert not torch.allclose(theirs, sample(near(False), hosts(), start=latent(81))[0], atol=1e-4)
