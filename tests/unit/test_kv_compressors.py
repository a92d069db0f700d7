"""Which tokens survive: what all compressors promise, and what each one's score means."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from benchmarks.redundancy import naive_redundancy
from flowcache_core.engine import EngineSettings
from flowcache_core.errors import SettingError
from flowcache_core.kv import (
    COMPRESSORS,
    Density,
    HeadWise,
    ImportanceRedundancy,
    Merge,
    Participative,
    Random,
    Recent,
    Settled,
    SinkWindow,
)
from flowcache_core.kv import importance_redundancy as module
from flowcache_core.kv.cache import KVCache
from flowcache_core.kv.compressor import Compressor, Region
from flowcache_core.kv.density import density
from flowcache_core.kv.ends import BetweenEnds
from flowcache_core.kv.importance_redundancy import importance, redundancy
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.settled import token_change
from flowcache_core.kv.shot_sink import ShotSink
from flowcache_core.kv.size import peak_bytes
from flowcache_core.kv.spec import KVSpec
from flowcache_core.kv.storage import Int4
from flowcache_core.models.common.attention import attend_heads
from flowcache_core.plan.blockwise import blockwise
from flowcache_core.schedule import shifted
from flowcache_core.sparse.settings import SparseSettings

FRAME = 7
"""Tokens per frame; a chunk has 3 frames."""

CONFIGURATIONS: list[Callable[..., Compressor]] = [
    ImportanceRedundancy,
    lambda **kw: ImportanceRedundancy(query_granularity="chunk", mix_lambda=0.5, pool_kernel=1, **kw),
    SinkWindow,
    lambda **kw: SinkWindow(sink=0.4, **kw),
    lambda **kw: ShotSink(sink=0.5, shots=(1, 2), **kw),
    Recent,
    Density,
    lambda **kw: Density(sink=0.0, recent=0.3, samples=16, **kw),
    Participative,
    HeadWise,
    lambda **kw: HeadWise(local=1.0, sink=0.0, **kw),
    Settled,
    Merge,
    lambda **kw: Merge(similarity=0.2, recent=0.4, **kw),
    Random,
    lambda **kw: Random(seed=2**32 - 1, **kw),
]


@dataclass(frozen=True)
class Given(Compressor):
    """Scores read off the first coordinate of the values, to test selection alone."""

    name: ClassVar[str] = "given"

    def score(self, region: Region) -> Tensor:
        return region.values[..., 0].float()


def region(
    length: int,
    *,
    n: int = 1,
    heads: int = 1,
    group: int = 1,
    dim: int = 8,
    rows: int = 5,
    seed: int = 0,
    **changes: Any,
) -> Region:
    """Random K/V/Q with ``length`` tokens, some positions left out as an earlier compression would."""
    g = torch.Generator().manual_seed(seed)
    gaps = torch.randint(1, 3, (n, heads, length), generator=g)
    made = Region(
        keys=torch.randn(n, heads, length, dim, generator=g),
        values=torch.randn(n, heads, length, dim, generator=g),
        queries=torch.randn(n, heads * group, rows, dim, generator=g),
        positions=(gaps.cumsum(-1) - 1).int(),
        tokens_per_frame=FRAME,
        chunk_tokens=3 * FRAME,
        chunk_starts=tuple(range(0, 2 * length + 1, 3 * FRAME)),
        layer=3,
        event=1,
    )
    return replace(made, **changes)


def given(scores: list[float], positions: list[int] | None = None) -> Region:
    values = torch.tensor(scores).reshape(1, 1, -1, 1)
    places = torch.tensor(positions or list(range(len(scores))), dtype=torch.int32).reshape(1, 1, -1)
    return region(len(scores), dim=1, values=values, positions=places)


def test_the_newest_shot_that_has_begun_keeps_its_start() -> None:
    """Chunks of three frames of four tokens, shots at chunks 2 and 4; the sinks are a chunk each."""
    method, chunk = ShotSink(sink=1.0, shots=(2, 4)), 3 * FRAME

    def kept(chunks: int, keep: int) -> list[int]:
        count = chunks * chunk
        one = given([0.0] * count, list(range(count)))
        starts = replace(one, chunk_starts=tuple(range(0, 8 * chunk, chunk)))
        tokens = method.keep(starts, keep * chunk)[0, 0].tolist()
        return sorted({token // chunk for token in tokens})

    assert kept(2, 1) == [0]  # no shot but the first: its start is the sink
    assert kept(4, 3) == [0, 2, 3]
    assert kept(5, 3) == [0, 3, 4]  # of the shot that has just begun there is no more than its start
    assert kept(7, 3) == [0, 4, 6]
    with pytest.raises(SettingError, match="rising"):
        ShotSink(shots=(4, 2))
    with pytest.raises(SettingError, match="3"):
        KVSettings(2.0, method)


def test_the_registry_names_every_compressor() -> None:
    assert {name: cls.name for name, cls in COMPRESSORS.items()} == {name: name for name in COMPRESSORS}
    tested = {type(make()) for make in CONFIGURATIONS}
    assert tested == set(COMPRESSORS.values())


@pytest.mark.parametrize("granularity", ["token", "frame", "chunk"])
@pytest.mark.parametrize("make", CONFIGURATIONS)
@pytest.mark.parametrize(
    ("n", "heads", "group", "length", "keep"),
    [(1, 1, 1, 2, 1), (1, 2, 3, 43, 20), (2, 1, 1, 64, 63), (2, 3, 2, 101, 1), (1, 8, 1, 57, 57)],
)
def test_keeps_exactly_what_is_asked_in_temporal_order(
    make: Callable[..., Compressor], granularity: str, n: int, heads: int, group: int, length: int, keep: int
) -> None:
    given_region = region(length, n=n, heads=heads, group=group)
    compressor = make(key_granularity=granularity)
    torch.manual_seed(1)
    kept = compressor.keep(given_region, keep)
    assert kept.shape == (n, heads, keep)
    assert kept.dtype == torch.int64
    assert (kept.diff(dim=-1) > 0).all()
    assert kept.min() >= 0 and kept.max() < length
    torch.manual_seed(2)
    assert torch.equal(kept, compressor.keep(given_region, keep))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kept, compressor.keep(given_region, keep))
    scores = compressor.score(given_region)
    assert scores.dtype == torch.float32
    assert scores.shape == (n, heads, length)
    if granularity == "token":
        for stream, indices in zip(scores.flatten(0, 1).tolist(), kept.flatten(0, 1).tolist(), strict=True):
            best = sorted(range(length), key=lambda i: (-stream[i], i))[:keep]  # noqa: B023
            assert indices == sorted(best)


@pytest.mark.parametrize("granularity", ["frame", "chunk"])
def test_groups_survive_whole_and_the_last_one_by_its_best_tokens(granularity: str) -> None:
    size = FRAME if granularity == "frame" else 3 * FRAME
    given_region = region(150, n=2, heads=2, seed=3)
    compressor = Given(key_granularity=granularity)
    scores = compressor.score(given_region).flatten(0, 1)
    groups = (given_region.positions // size).flatten(0, 1)
    for keep in (1, 10, 77, 149):
        kept = compressor.keep(given_region, keep).flatten(0, 1)
        for score, group, indices in zip(scores.tolist(), groups.tolist(), kept.tolist(), strict=True):
            members = {g: [i for i, own in enumerate(group) if own == g] for g in set(group)}
            ranked = sorted(members, key=lambda g: -sum(score[i] for i in members[g]) / len(members[g]))  # noqa: B023
            order = [i for g in ranked for i in sorted(members[g], key=lambda i: -score[i])]  # noqa: B023
            assert indices == sorted(order[:keep])


def test_ties_go_to_the_earlier_token_frame_and_chunk() -> None:
    assert Given().keep(given([1, 2, 2, 2, 0]), 2).tolist() == [[[1, 2]]]
    assert Given().keep(given([5.0] * 40), 7).tolist() == [[list(range(7))]]
    assert Given(key_granularity="frame").keep(given([5.0] * 40), 9).tolist() == [[list(range(9))]]
    assert Given(key_granularity="chunk").keep(given([5.0] * 40), 30).tolist() == [[list(range(30))]]
    frames = [0.0] * FRAME + [1.0] * FRAME + [1.0] * FRAME + [0.5] * FRAME
    kept = Given(key_granularity="frame").keep(given(frames), FRAME + 2)
    assert kept.tolist() == [[list(range(FRAME, 2 * FRAME + 2))]]


def test_groups_follow_positions_not_places_in_the_buffer() -> None:
    """Of frame 0 one token is left, of frame 1 two: their means are 3, 2.5; frame 2 has 1."""
    made = given([3, 4, 1, 1, 1, 1], positions=[6, 7, 13, 14, 15, 16])
    assert Given(key_granularity="frame").keep(made, 1).tolist() == [[[0]]]
    assert Given(key_granularity="frame").keep(made, 2).tolist() == [[[0, 1]]]
    assert Given(key_granularity="chunk").keep(made, 3).tolist() == [[[0, 1, 2]]]


def test_wrong_shape_of_scores_is_refused() -> None:
    class Broken(Given):
        def score(self, region: Region) -> Tensor:
            return region.values[..., :-1, 0]

    with pytest.raises(RuntimeError, match="given: scores"):
        Broken().keep(region(9), 3)


@pytest.mark.parametrize("length", [3, 33, 700])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_linear_redundancy_equals_the_naive_form(length: int, scale: float) -> None:
    keys = scale * (torch.randn(2, 3, length, 16, generator=torch.Generator().manual_seed(length)) + 0.3)
    keys[0, 0, 1] = 0.0  # a key of length zero is similar to nothing, not even to itself
    keys[1, 1, 1] = keys[1, 1, 0]
    linear, naive = redundancy(keys) * length, naive_redundancy(keys) * length
    assert (linear - naive).abs().max() < 1e-5
    assert naive.std() > 1e-2  # in units of the mean score: there is something to agree about


def test_redundancy_by_hand() -> None:
    """Unit keys a, a, b with a.b = 0 and lengths 2, 5, 1: mean similarities 1/3, 1/3, 0."""
    keys = torch.tensor([[2.0, 0.0], [5.0, 0.0], [0.0, 1.0]]).reshape(1, 1, 3, 2)
    e = math.exp(1 / 3)
    expected = torch.tensor([[[e, e, 1.0]]]) / (2 * e + 1)
    assert torch.allclose(redundancy(keys), expected, atol=1e-7)


def test_importance_by_hand() -> None:
    """One K/V head, two query heads: logits q.k/sqrt(2) are [1, 0, 0] and [0, 2, 0], so their maximum is [1, 2, 0]."""
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).reshape(1, 1, 3, 2)
    root = math.sqrt(2)
    queries = torch.tensor([[[root, 0.0]], [[0.0, 2 * root]]]).reshape(1, 2, 1, 2)
    weights = [math.exp(1), math.exp(2), 1.0]
    expected = torch.tensor(weights) / sum(weights)
    assert torch.allclose(importance(keys, queries, 1)[0, 0], expected, atol=1e-7)
    assert torch.allclose(importance(keys, queries, 3)[0, 0], expected[[1, 1, 1]], atol=1e-7)
    other = torch.tensor([[[0.0, 0.0]], [[0.0, 0.0]]]).reshape(1, 2, 1, 2)
    both = torch.cat([queries, other], dim=2)  # the second query attends evenly
    assert torch.allclose(importance(keys, both, 1)[0, 0], (expected + 1 / 3) / 2, atol=1e-7)


def test_query_heads_belong_to_their_own_kv_head() -> None:
    made = region(30, n=2, heads=3, group=4)
    assert made.queries is not None
    together = importance(made.keys, made.queries, 7)
    for head in range(3):
        alone = importance(made.keys[:, head : head + 1], made.queries[:, 4 * head : 4 * head + 4], 7)
        assert torch.allclose(together[:, head : head + 1], alone, atol=1e-7)


def test_importance_in_blocks_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    made = region(40, heads=2, group=2, rows=23)
    assert made.queries is not None
    whole = importance(made.keys, made.queries, 5)
    monkeypatch.setattr(module, "_LOGITS_PER_BLOCK", 40 * 4 * 5)
    assert torch.allclose(importance(made.keys, made.queries, 5), whole, atol=1e-7)


def test_score_mixes_importance_and_redundancy() -> None:
    made = region(50, heads=2, group=3)
    assert made.queries is not None
    imp, red = importance(made.keys, made.queries, 7), redundancy(made.keys)
    assert torch.allclose(ImportanceRedundancy().score(made), 0.07 * imp - 0.93 * red, atol=1e-8)
    assert torch.allclose(ImportanceRedundancy(mix_lambda=1.0).score(made), imp, atol=1e-8)
    unseen = replace(made, queries=None)
    assert torch.allclose(ImportanceRedundancy(mix_lambda=0.25).score(unseen), -0.75 * red, atol=1e-8)


def test_scores_are_fp32_for_bf16_keys() -> None:
    made = region(400, heads=2, dim=32)
    rounded = replace(made, keys=made.keys.bfloat16(), queries=None)
    scores = ImportanceRedundancy().score(rounded)
    assert torch.equal(scores, ImportanceRedundancy().score(replace(rounded, keys=rounded.keys.float())))
    assert min(len(head.unique()) for head in scores.flatten(0, 1)) > 300


@pytest.mark.parametrize(("granularity", "rows"), [("token", 50), ("frame", 60), ("chunk", 180)])
def test_query_rows(granularity: str, rows: int) -> None:
    compressor = ImportanceRedundancy(query_granularity=granularity)
    assert compressor.query_rows(180, 60) == rows
    assert compressor.query_rows(12, 4) == {"token": 12, "frame": 4, "chunk": 12}[granularity]
    assert Recent().query_rows(180, 60) == SinkWindow().query_rows(180, 60) == Random().query_rows(180, 60) == 0


def test_recent_and_sink_window() -> None:
    made = given([0.0] * 30)
    assert Recent().keep(made, 4).tolist() == [[[26, 27, 28, 29]]]
    assert SinkWindow(sink=2 / 21).keep(made, 5).tolist() == [[[0, 1, 27, 28, 29]]]
    assert SinkWindow(sink=0.0).keep(made, 5).tolist() == Recent().keep(made, 5).tolist()
    assert SinkWindow(key_granularity="frame", sink=1 / 3).keep(made, 9).tolist() == [[[*range(7), 28, 29]]]


def test_the_sink_survives_every_event() -> None:
    """A second compression sees [sink | recent]; the sink is known by position."""
    made = given([0.0] * 8, positions=[0, 1, 2, 3, 40, 41, 42, 43])
    assert SinkWindow(sink=4 / 21).keep(made, 6).tolist() == [[[0, 1, 2, 3, 6, 7]]]


def test_random_depends_on_seed_layer_and_event_only() -> None:
    made = region(200, n=2, heads=2)
    state = torch.random.get_rng_state()
    first = Random(seed=5).keep(made, 100)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, Random(seed=5).keep(replace(made, keys=-made.keys, queries=None), 100))
    others = [Random(seed=6).keep(made, 100)]
    for layer, event in ((4, 1), (3, 2), (1, 3)):
        others.append(Random(seed=5).keep(replace(made, layer=layer, event=event), 100))
    assert all(not torch.equal(first, other) for other in others)
    assert not torch.equal(first[0, 0], first[0, 1])


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: ImportanceRedundancy(mix_lambda=-0.01), "mix_lambda"),
        (lambda: ImportanceRedundancy(mix_lambda=1.01), "mix_lambda"),
        (lambda: ImportanceRedundancy(mix_lambda=math.nan), "mix_lambda"),
        (lambda: ImportanceRedundancy(pool_kernel=4), "pool_kernel"),
        (lambda: ImportanceRedundancy(pool_kernel=0), "pool_kernel"),
        (lambda: ImportanceRedundancy(pool_kernel=-3), "pool_kernel"),
        (lambda: ImportanceRedundancy(query_granularity="pixel"), "query_granularity"),
        (lambda: Recent(key_granularity="block"), "key_granularity"),
        (lambda: SinkWindow(sink=-1.0), "sink"),
        (lambda: SinkWindow(sink=math.inf), "sink"),
        (lambda: Random(seed=-1), "seed"),
        (lambda: Random(seed=2**32), "seed"),
    ],
)
def test_wrong_settings_name_their_field(make: Callable[[], Compressor], field: str) -> None:
    with pytest.raises(SettingError) as caught:
        make()
    assert caught.value.field == field


def scattered(keys: Tensor, queries: Tensor | None = None, chunk: int = 4) -> Region:
    """Keys ``[N, kv_heads, L, d]`` at positions 0 to L - 1, in chunks of ``chunk`` tokens."""
    n, heads, length, _ = keys.shape
    positions = torch.arange(length, dtype=torch.int32).expand(n, heads, -1)
    return Region(keys, keys, queries, positions, 2, chunk, tuple(range(0, length, chunk)), 0, 0)


@pytest.mark.parametrize("kind", [Density, Participative, HeadWise])
def test_both_ends_stay_whatever_the_score_says(kind: type[BetweenEnds]) -> None:
    g = torch.Generator().manual_seed(3)
    keys, queries = torch.randn(2, 2, 24, 8, generator=g), torch.randn(2, 4, 4, 8, generator=g)
    kept = kind(sink=1.0, recent=1.5).keep(scattered(keys, queries), 12)
    for tokens in kept.flatten(0, 1).tolist():
        assert tokens[:4] == [0, 1, 2, 3] and tokens[-6:] == [18, 19, 20, 21, 22, 23] and len(set(tokens)) == 12
    assert kind(sink=1.0, recent=1.5).min_budget == 2.5
    with pytest.raises(SettingError, match="^recent: got"):
        kind(recent=-1.0)


def test_density_keeps_what_is_alone() -> None:
    """Nine copies of one key and three others that lie apart: the three, and of the copies the earliest."""
    g = torch.Generator().manual_seed(0)
    keys = torch.zeros(1, 1, 12, 8) + torch.randn(8, generator=g)
    apart = [2, 7, 10]
    keys[0, 0, apart] = torch.randn(3, 8, generator=g) * 3
    kept = Density(sink=0.0, recent=0.0).keep(scattered(keys), 4)
    assert kept.flatten().tolist() == [0, *apart]
    later = keys.clone()
    later[0, 0, 3:, :2] += 40.0 * torch.arange(9)[:, None]  # what turns with time makes no copy unlike the others
    assert Density(sink=0.0, recent=0.0, time_channels=0.25).keep(scattered(later), 4).flatten().tolist() == [0, *apart]


def test_density_of_every_key_by_definition() -> None:
    g = torch.Generator().manual_seed(1)
    keys = torch.randn(2, 2, 20, 4, generator=g)
    expected = (torch.cdist(keys, keys).square() + 0.25).reciprocal().mean(-1)
    assert torch.allclose(density(keys, 2048, 0.5), expected, atol=1e-4)


def test_participation_is_the_sum_of_products_over_a_group_of_heads() -> None:
    g = torch.Generator().manual_seed(2)
    keys, queries = torch.randn(1, 2, 10, 8, generator=g), torch.randn(1, 4, 5, 8, generator=g)
    scores = Participative(sink=0.0, recent=0.0).score(scattered(keys, queries))
    for head in range(2):
        expected = torch.einsum("hqd,ld->l", queries[0, 2 * head : 2 * head + 2], keys[0, head])
        assert torch.allclose(scores[0, head], expected, atol=1e-4)


def test_heads_that_look_nearby_keep_a_window_and_others_what_they_look_at() -> None:
    keys = torch.full((1, 2, 20, 8), -1.0)
    keys[0, 0, 16:] = 3.0  # head 0 finds its queries in the newest chunk, head 1 far back
    keys[0, 1, [5, 6, 9]] = 3.0
    queries = torch.ones(1, 2, 4, 8)
    kept = HeadWise(sink=0.0, recent=0.0).keep(scattered(keys, queries), 7)
    assert kept[0, 0].tolist() == [13, 14, 15, 16, 17, 18, 19]
    assert {5, 6, 9} <= set(kept[0, 1].tolist())


def test_in_reference_order_the_best_token_stands_first() -> None:
    seen = region(2 * 3 * FRAME + 5, n=2, heads=3)
    usual, ranked = ImportanceRedundancy(mix_lambda=0.5), ImportanceRedundancy(mix_lambda=0.5, reference_order=True)
    kept, best = usual.keep(seen, 12), ranked.keep(seen, 12)
    assert torch.equal(best.sort(-1).values, kept) and not torch.equal(best, kept)
    scores = ranked.score(seen).gather(-1, best)
    assert bool((scores[..., 1:] <= scores[..., :-1]).all())


@pytest.mark.parametrize("granularity", ["frame", "chunk"])
def test_reference_order_is_of_single_tokens(granularity: Any) -> None:
    with pytest.raises(SettingError, match="reference_order"):
        ImportanceRedundancy(reference_order=True, key_granularity=granularity)


def test_reference_order_goes_with_no_exact_ends() -> None:
    compressor = ImportanceRedundancy(reference_order=True)
    KVSettings(2.0, compressor, storage=Int4())
    with pytest.raises(SettingError, match="reference_order"):
        KVSettings(2.0, compressor, storage=Int4(exact_recent=1.0))


def test_merging_equal_keys_is_exact() -> None:
    """Chunks that repeat each other's keys, with other values: what is dropped lives on in mean value and count."""
    plan, spec = blockwise(15, 3, 1), KVSpec(layers=1, kv_heads=2, head_dim=8, tokens_per_frame=4, branches=1, batch=2)
    g = torch.Generator().manual_seed(0)
    same = torch.randn(2, 2, 12, 8, generator=g)
    whole, merged = KVCache(spec, KVSettings(), plan), KVCache(spec, KVSettings(1.0, Merge(sink=0.0)), plan)
    for chunk in plan.chunks:
        values, q = torch.randn(2, 2, 12, 8, generator=g), torch.randn(2, 2, 12, 8, generator=g)
        outputs = []
        for cache in (whole, merged):
            cache.begin(chunk)
            cache.write(0, range(1), chunk, same, values)
            outputs.append(cache.attend(0, range(1), chunk, q, attend_heads))
            cache.commit(chunk)
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    assert merged.layouts[0].clean_tokens == 24 and whole.layouts[0].clean_tokens == 60
    counts = merged._layers[0].counts
    assert counts is not None and bool((counts[..., :12] == 4).all())
    sizes = peak_bytes(spec, merged.settings, plan)
    assert merged.bytes == sizes


def test_what_resembles_nothing_new_is_lost_and_counts_for_nothing() -> None:
    seen = region(4 * 3 * FRAME, heads=2)
    method = Merge(similarity=0.99, sink=0.0)
    kept = method.keep(seen, 3 * 3 * FRAME)
    target = method.taken_over(seen, kept)
    assert bool((target.gather(-1, kept) == torch.arange(kept.shape[-1])).all())
    assert int((target == -1).sum()) == 2 * 3 * FRAME  # one chunk of random keys, in two heads
    assert torch.equal(kept, Recent().keep(seen, 3 * 3 * FRAME))
    alike = Merge(similarity=-1.0, sink=0.0)
    assert int((alike.taken_over(seen, alike.keep(seen, 3 * 3 * FRAME)) == -1).sum()) == 0


def test_merge_is_refused_where_values_cannot_be_made_anew() -> None:
    with pytest.raises(SettingError, match="storage"):
        KVSettings(2.0, Merge(), storage=Int4())
    with pytest.raises(SettingError, match="dtype"):
        KVSettings(2.0, Merge(), dtype=torch.float8_e4m3fn)
    plan, schedule = blockwise(6, 3, 2), shifted(2, 3.0)
    with pytest.raises(SettingError, match="sparse"):
        EngineSettings(plan, schedule, kv=KVSettings(2.0, Merge()), sparse=SparseSettings())


def test_settled_tokens_go_first() -> None:
    seen = region(4 * 3 * FRAME, heads=2)
    change = torch.rand(1, 1, 4 * 3 * FRAME).expand(seen.positions.shape)
    method = Settled(sink=0.0, recent=0.0)
    kept = method.keep(replace(seen, change=change), 20)
    best = change[0, 0].topk(20).indices.sort().values
    assert torch.equal(kept[0, 0], best) and torch.equal(kept[0, 1], best)
    assert torch.equal(method.keep(seen, 20), Recent().keep(seen, 20))  # nothing is known: the newest
    assert [Settled(probe=share).probe_step(4) for share in (0.0, 0.5, 0.99)] == [0, 2, 3]


def test_a_token_s_change_is_the_mean_over_its_patch() -> None:
    final = torch.randn(2, 3, 2, 4, 6)
    predicted = final.clone()
    predicted[1, :, 1, 2:4, 4:6] += 2.0
    change = token_change(predicted, final, 6)
    expected = torch.zeros(2, 12)
    expected[1, 11] = 4.0
    torch.testing.assert_close(change, expected)
    assert token_change(torch.zeros(1, 3, 1, 5, 3), torch.ones(1, 3, 1, 5, 3), 6).tolist() == [[1.0] * 6]
