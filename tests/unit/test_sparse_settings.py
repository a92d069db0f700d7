"""What a user may ask of sparse attention, what stays dense, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from flowcache_core.cost import WanShape
from flowcache_core.errors import SettingError
from flowcache_core.kv import size
from flowcache_core.kv.branched import BranchedCache
from flowcache_core.kv.headed import cache_of
from flowcache_core.kv.random import Random
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.size import read_bytes, run_bytes
from flowcache_core.kv.spec import KVSpec
from flowcache_core.kv.storage import Int4
from flowcache_core.plan import Blockwise
from flowcache_core.sparse import TopK, Window, XAttention
from flowcache_core.sparse.build import sparse_from_text
from flowcache_core.sparse.context_layout import ContextLayout
from flowcache_core.sparse.cost import (
    Forward,
    attention_share,
    mask_bytes,
    overall_density,
    pair_flops,
    sparse_density,
)
from flowcache_core.sparse.mask import SparseMask
from flowcache_core.sparse.mask_memory import MaskMemory
from flowcache_core.sparse.mask_reuse import MaskReuse
from flowcache_core.sparse.settings import SparseSettings

MINI = XAttention(block=16, stride=4)


def test_defaults_leave_short_contexts_and_lasting_passes_dense() -> None:
    settings = SparseSettings()
    assert (settings.method, settings.reuse, settings.engine) == (XAttention(block=128, p=0.9, stride=16), None, "auto")
    assert [settings.dense(0, chunks * 48, 48) for chunks in (1, 2, 3, 8)] == [True, True, False, False]
    assert settings.dense(0, 97, 48) is False  # a token more than two chunks
    assert settings.dense(5, 8 * 48, 48, lasting=True)
    assert not SparseSettings(dense_lasting=False).dense(5, 8 * 48, 48, lasting=True)
    assert [SparseSettings(dense_steps=2, dense_chunks=0).dense(step, 48, 48) for step in range(3)] == [
        True,
        True,
        False,
    ]
    assert hash(settings) == hash(SparseSettings())


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: SparseSettings(dense_chunks=-1), "dense_chunks"),
        (lambda: SparseSettings(dense_chunks=1.5), "dense_chunks"),  # type: ignore[arg-type]
        (lambda: SparseSettings(dense_steps=-1), "dense_steps"),
        (lambda: SparseSettings(engine="triton"), "engine"),
        (lambda: SparseSettings(dense_lasting="no"), "dense_lasting"),  # type: ignore[arg-type]
        (lambda: sparse_from_text('{"name": "xattention", "tables": {}}'), "sparse xattention"),
        (lambda: SparseSettings().check([48, 48], 2, 4), "block"),  # 128 tokens in a chunk of 48
        (lambda: SparseSettings(Window(64)).check([48], 2, 4), "block"),
        (lambda: SparseSettings(XAttention(16, [[0.5] * 4] * 3, 4)).check([48], 2, 4), "p"),
        (lambda: SparseSettings(XAttention(16, [[0.5] * 3] * 2, 4)).check([48], 2, 4), "p"),
        (lambda: SparseSettings(XAttention(16, [[0.5] * 4, [0.5]], 4)).check([48], 2, 4), "p"),
    ],
)
def test_wrong_settings_name_their_field(make: Callable[[], object], field: str) -> None:
    with pytest.raises(SettingError) as caught:
        make()
    assert caught.value.field == field


@pytest.mark.parametrize("chunk_tokens", [[48, 48, 48], [64, 48], [50, 16, 7]])
def test_what_suits_a_model_and_a_video_passes(chunk_tokens: list[int]) -> None:
    SparseSettings(MINI).check(chunk_tokens, 2, 4)
    SparseSettings(XAttention(16, [[0.5] * 4] * 2, 4)).check(chunk_tokens, 2, 4)
    SparseSettings(TopK(48, 0.3, 4)).check([48], 2, 4)


def test_a_note_when_nothing_can_become_sparse() -> None:
    settings = SparseSettings(MINI)
    assert settings.note(8 * 48, 48, 20) is None and settings.note(97, 48, 20) is None
    assert settings.note(96, 48, 20) == "dense_chunks 2: no context is longer (2 chunks at most), all stay dense"
    assert SparseSettings(MINI, dense_steps=20).note(384, 48, 20) == "dense_steps 20 of 20: every step is dense"
    assert SparseSettings(MINI, dense_steps=19).note(384, 48, 20) is None


# -- cost --------------------------------------------------------------------------------------------------------------


def test_a_full_mask_costs_what_the_model_counts_for_dense_attention() -> None:
    shape = WanShape(dim=4 * 32, ffn_dim=256, layers=3)
    mask = SparseMask(torch.ones(1, 4, 3, 7, dtype=torch.bool), 16, 40, 100)
    flops = shape.layers * sum(pair_flops(pairs, 32) for pairs in mask.kept_pairs()[0].tolist())
    assert flops == shape.attention(40, 100)


@pytest.mark.parametrize(("stride", "share"), [(4, 0.125), (8, 0.0625), (16, 0.03125)])
def test_predicting_a_mask_costs_what_its_product_does(stride: int, share: float) -> None:
    q_tokens, k_tokens, dim = 256, 1024, 64
    product = 2 * (q_tokens // stride) * (k_tokens // stride) * (stride * dim)
    assert XAttention(stride=stride).prediction == TopK(stride=stride).prediction == share
    assert product == share * pair_flops(q_tokens * k_tokens, dim)


def test_shares_add_kept_blocks_and_the_masks_that_were_made() -> None:
    assert attention_share(0.3, XAttention(stride=16)) == pytest.approx(0.33125)
    assert attention_share(0.3, XAttention(stride=16), predicted=0.24) == pytest.approx(0.3075)
    assert attention_share(0.3, Window()) == 0.3
    for wrong in ({"density": 1.2}, {"density": math.nan}, {"density": 0.5, "predicted": -1}):
        with pytest.raises(SettingError):
            attention_share(method=Window(), **wrong)  # type: ignore[arg-type]


def forwards(chunks: int, dense_chunks: int) -> list[Forward]:
    return [Forward(48, 48 * (i + 1), i < dense_chunks) for i in range(chunks)]


def test_densities_of_a_whole_video() -> None:
    video = forwards(8, 2)  # 3 of 36 parts are dense
    assert overall_density(video, 0.3) == pytest.approx((3 + 0.3 * 33) / 36)
    assert sparse_density(video, overall_density(video, 0.3)) == pytest.approx(0.3)
    assert sparse_density(video, 1.0) == pytest.approx(1.0) and sparse_density(forwards(2, 2), 1.0) == 1.0


@pytest.mark.parametrize("overall", [0.0, 0.05, 3 / 36, -1.0, 1.5, math.nan])
def test_a_density_that_the_dense_chunks_take_alone_is_refused(overall: float) -> None:
    with pytest.raises(SettingError) as caught:
        sparse_density(forwards(8, 2), overall)
    assert caught.value.field == "density"


def test_where_everything_stays_dense_only_1_is_accepted() -> None:
    with pytest.raises(SettingError, match="accepted: 1: no context .* long enough"):
        sparse_density(forwards(2, 2), 0.5)


def test_packed_kv_is_unpacked_for_all_heads_at_once() -> None:
    """Dense attention reads a large layer some heads at a time; masks need all of them."""
    spec = KVSpec(2, 8, 128, 1560, branches=2, batch=1)
    plan, kv = Blockwise().plan(60, 4), KVSettings(storage=Int4())
    whole = 2 * 2 * 8 * 60 * 1560 * 128 * spec.dtype.itemsize
    assert read_bytes(spec, kv, plan) < whole == read_bytes(spec, kv, plan, all_heads=True)
    assert run_bytes(spec, kv, plan, True) - run_bytes(spec, kv, plan) == whole - read_bytes(spec, kv, plan)


def test_a_cache_says_what_is_unpacked_when_masks_need_all_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, plan = KVSpec(1, 4, 8, 6, branches=2, batch=1), Blockwise().plan(12, 4)
    monkeypatch.setattr(size, "READ_BYTES", 1)
    for kv in (KVSettings(storage=Int4()), KVSettings(((2.0, 2.0, 3.0, 3.0),), Random(), storage=Int4())):
        cache = cache_of(spec, kv, plan)
        some, whole = (read_bytes(spec, kv, plan, all_heads) for all_heads in (False, True))
        assert (cache.most_read_bytes(), cache.most_read_bytes(True)) == (some, whole) and some < whole
    parts = BranchedCache(spec, kv, plan)
    assert parts.most_read_bytes() < parts.most_read_bytes(True) == whole


def test_memory_is_what_a_run_holds() -> None:
    memory = MaskMemory(MaskReuse(), layers=2, heads=4, block=16)
    key = (2, 0)
    memory.decide(key, 0, ContextLayout(((0, 40), (1, 40), (2, 40))), None)
    for layer in range(2):
        q, k = torch.randn(1, 4, 40, 8), torch.randn(1, 4, 120, 8)
        memory.kept(key, layer, q, k[:, :, -40:], lambda heads, q=q, k=k: MINI.mask(q, k, 0, heads).kept)
    assert memory.bytes == mask_bytes(40, 120, 16, layers=2, heads=4)
