"""Which blocks are kept: scores and masks of the published method, and of the controls."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from flowcache_core.errors import SettingError
from flowcache_core.sparse import METHODS, Calibrated, SparseMethod, TopK, Window, XAttention, antidiagonal
from flowcache_core.sparse.antidiagonal import antidiagonal_scores
from flowcache_core.sparse.head_errors import Subject
from flowcache_core.sparse.head_table import HeadTable
from flowcache_core.sparse.mask import SparseMask
from flowcache_core.sparse.xattention import top_p

GOLDEN = Path(__file__).parents[1] / "golden" / "sparse_attention"
BOTH = pytest.mark.parametrize("name", ["xattn_nc_chunk_64", "xattn_nc_video_32"])
STRIDES = pytest.mark.parametrize("stride", [4, 8, 16])


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    path = GOLDEN / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
    return load_file(path), about


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def scores_by_definition(q: Tensor, k: Tensor, block: int, stride: int) -> Tensor:
    """float64 ``[heads, Qb, Kb]`` of one batch item, tile by tile, pair by pair."""
    heads, q_tokens, dim = q.shape
    group, k_tokens = heads // k.shape[0], k.shape[1]
    product = torch.einsum("hqd,hkd->hqk", q.double(), k.double().repeat_interleave(group, 0)) / math.sqrt(dim)
    rows, columns = -(-q_tokens // stride), -(-k_tokens // stride)
    logits = torch.full((heads, rows, columns), -torch.inf, dtype=torch.float64)
    for a in range(rows):
        for b in range(columns):
            pairs = [(a * stride + stride - 1 - s, b * stride + s) for s in range(stride)]
            pairs = [(i, j) for i, j in pairs if i < q_tokens and j < k_tokens]
            if pairs:
                logits[:, a, b] = torch.stack([product[:, i, j] for i, j in pairs]).mean(0)
    mass = logits.softmax(-1).nan_to_num(0.0)
    scores = torch.zeros(heads, -(-q_tokens // block), -(-k_tokens // block), dtype=torch.float64)
    for a in range(rows):
        for b in range(columns):
            scores[:, a * stride // block, b * stride // block] += mass[:, a, b]
    return scores


# -- scores ------------------------------------------------------------------------------------------------------------


@BOTH
@STRIDES
def test_scores_are_those_of_the_reference(name: str, stride: int) -> None:
    tensors, about = golden(name)
    scores = antidiagonal_scores(tensors["q"], tensors["k"], about["block"], stride)
    assert (scores[0] - tensors[f"s{stride}.scores_reference"]).abs().max() < 1e-5
    assert torch.allclose(scores.sum(-1), torch.tensor(float(about["block"] // stride)))


@pytest.mark.parametrize(
    ("q_tokens", "k_tokens", "block", "stride"),
    [
        (37, 101, 16, 4),  # both ends ragged, the corner tile with one pair or none
        (39, 103, 16, 8),
        (32, 90, 16, 4),
        (30, 96, 32, 8),
        (48, 97, 16, 16),  # a last tile of keys with a single token
        (33, 64, 16, 16),
        (5, 33, 16, 8),
        (1, 1, 16, 4),  # no pair at all
        (16, 40, 8, 1),  # stride 1: the whole product
    ],
)
def test_padding_does_not_exist(q_tokens: int, k_tokens: int, block: int, stride: int) -> None:
    q, k = noise(1, 4, q_tokens, 8) * 2, noise(1, 2, k_tokens, 8, seed=1) * 2
    scores = antidiagonal_scores(q, k, block, stride)
    expected = scores_by_definition(q[0], k[0], block, stride)
    assert scores.shape[1:] == expected.shape and (scores[0] - expected).abs().max() < 1e-5


@pytest.mark.parametrize(("heads", "batch", "tokens"), [(4, 2, (70, 130)), (2, 1, (64, 64))])
def test_scratch_is_bounded_without_changing_a_score(
    monkeypatch: pytest.MonkeyPatch, heads: int, batch: int, tokens: tuple[int, int]
) -> None:
    q, k = noise(batch, heads, tokens[0], 8), noise(1, 2, tokens[1], 8, seed=1)
    at_once = antidiagonal_scores(q, k, 16, 4)
    monkeypatch.setattr(antidiagonal, "_LOGITS_AT_ONCE", 1000)
    assert (antidiagonal_scores(q, k, 16, 4) - at_once).abs().max() < 1e-6


def test_keys_of_one_serve_the_batch_and_groups_share_a_head() -> None:
    q, k = noise(3, 6, 20, 8), noise(1, 2, 50, 8, seed=1)
    scores = antidiagonal_scores(q, k, 8, 4)
    for item in range(3):
        expected = antidiagonal_scores(q[item : item + 1], k.repeat_interleave(3, 1), 8, 4)
        assert (scores[item] - expected[0]).abs().max() < 1e-6


def test_scores_do_not_depend_on_how_tensors_lie_or_on_autocast() -> None:
    q, k = noise(1, 4, 40, 8), noise(1, 4, 70, 8, seed=1)
    plain = XAttention(block=16, stride=4).mask(q, k).kept
    buffer = noise(1, 90, 4, 8, seed=2)
    buffer[:, 10:80] = k.transpose(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        lying = XAttention(block=16, stride=4).mask(q, buffer.transpose(1, 2)[:, :, 10:80]).kept
    assert torch.equal(plain, lying)


# -- top p -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", json.loads((GOLDEN / "top_p_rows.json").read_text())["cases"], ids=str)
def test_top_p_keeps_what_the_rule_says(case: dict[str, Any]) -> None:
    kept = top_p(torch.tensor([[case["row"]]], dtype=torch.float32), case["p"])
    assert kept[0, 0].nonzero().flatten().tolist() == case["xattention"]


@BOTH
@STRIDES
@pytest.mark.parametrize("p", [0.5, 0.8, 0.9, 0.95, "per_head"])
def test_masks_are_those_of_the_rule(name: str, stride: int, p: float | str) -> None:
    tensors, about = golden(name)
    table = p if isinstance(p, float) else [about["strides"][str(stride)]["per_head_p"]]
    mask = XAttention(block=about["block"], stride=stride, p=table).mask(tensors["q"], tensors["k"])  # type: ignore[arg-type]
    assert torch.equal(mask.kept[0], tensors[f"s{stride}.mask_top_p.{p}"].bool())


def test_equal_scores_go_to_the_earlier_block_whatever_the_order_of_the_sum() -> None:
    thirds = torch.full((1, 1, 1, 3), 1 / 3)
    assert top_p(thirds, 0.5)[0, 0, 0].tolist() == [True, True, False]
    tenths = torch.full((1, 1, 1, 10), 0.1)  # in fp32 five of them add up to more or less than half, by their order
    assert top_p(tenths, 0.5)[0, 0, 0].tolist() == [True] * 5 + [False] * 5


def test_p_of_one_keeps_blocks_too_light_to_count() -> None:
    scores = torch.tensor([[[[1.0, 1e-12, 0.0]], [[1.0, 1e-12, 0.0]]]])
    kept = XAttention(p=[[1.0, 0.99]]).select(scores, 0, [0, 1])
    assert kept[0, :, 0].tolist() == [[True, True, True], [True, False, False]]


def test_a_table_gives_every_layer_and_head_its_own_p() -> None:
    q, k = noise(1, 2, 32, 8), noise(1, 2, 128, 8, seed=1)
    table = XAttention(block=16, stride=4, p=[[0.2, 0.9], [1.0, 1.0]])
    for head, p in enumerate((0.2, 0.9)):
        assert torch.equal(
            table.mask(q, k, 0).kept[:, head], XAttention(block=16, stride=4, p=p).mask(q, k).kept[:, head]
        )
    assert not table.dense(0) and table.dense(1) and bool(table.mask(q, k, 1).kept.all())
    assert XAttention(p=1).dense(5) and not XAttention(p=0.5).dense(5)
    assert hash(table) == hash(XAttention(block=16, stride=4, p=((0.2, 0.9), (1.0, 1.0))))


# -- all methods -------------------------------------------------------------------------------------------------------


def table(density: float) -> Calibrated:
    """Four heads in each of two layers, all alike but for their errors."""
    subject = Subject("0" * 64, 2, 4, 16, 4, (0.3, 0.6, 1.0))
    errors = tuple((0.2 + head, 0.1, 0.0) for head in range(8))
    return Calibrated(density=density, table=HeadTable(subject, errors, ((0.2, 0.5, 1.0),) * 8))


EVERY: list[SparseMethod] = [XAttention(block=16, stride=4, p=0.6), TopK(16, 0.3, 4), Window(16, 0.3), table(0.4)]


def test_the_registry_names_every_method() -> None:
    assert {method.name for method in EVERY} == set(METHODS) and {m.name: m for m in METHODS.values()} == METHODS


@pytest.mark.parametrize("method", EVERY, ids=lambda m: m.name)
@pytest.mark.parametrize("tokens", [(48, 384), (33, 97), (7, 20), (1, 17), (16, 16), (3, 3)])
def test_no_row_is_empty_and_shapes_fit(method: SparseMethod, tokens: tuple[int, int]) -> None:
    q, k = noise(2, 4, tokens[0], 8), noise(2, 2, tokens[1], 8, seed=1)
    mask = method.mask(q, k)
    assert mask.kept.shape == (2, 4, -(-tokens[0] // 16), -(-tokens[1] // 16)) and bool(mask.kept.any(-1).all())


@pytest.mark.parametrize("method", EVERY, ids=lambda m: m.name)
def test_some_heads_alone_get_the_masks_they_get_among_all(method: SparseMethod) -> None:
    q, k = noise(1, 4, 48, 8), noise(1, 2, 160, 8, seed=1)
    everything = method.mask(q, k).kept
    assert torch.equal(method.mask(q, k, heads=[3, 1]).kept, everything[:, [3, 1]])


@pytest.mark.parametrize("columns", [3, 10, 24])
@pytest.mark.parametrize("density", [0.01, 0.25, 0.3, 0.5, 1.0])
def test_top_k_and_window_keep_the_same_number_everywhere(columns: int, density: float) -> None:
    q, k = noise(1, 2, 32, 8), noise(1, 2, columns * 16, 8, seed=1)
    expected = max(1, math.floor(density * columns + 0.5))
    for method in (TopK(16, density, 4), Window(16, density)):
        assert bool((method.mask(q, k).kept.sum(-1) == expected).all())


def test_top_k_keeps_the_best() -> None:
    q, k = noise(1, 2, 32, 8), noise(1, 2, 160, 8, seed=1)
    scores = antidiagonal_scores(q, k, 16, 4)
    kept = TopK(16, 0.4, 4).mask(q, k).kept
    assert bool((scores.masked_fill(~kept, torch.inf).amin(-1) >= scores.masked_fill(kept, 0.0).amax(-1)).all())


def test_a_window_is_about_the_row_itself() -> None:
    q, k = noise(1, 1, 32, 8), noise(1, 1, 160, 8, seed=1)  # rows lie at blocks 8 and 9 of 10
    assert Window(16, 0.3).mask(q, k).kept[0, 0].nonzero().tolist() == [
        [0, 7], [0, 8], [0, 9], [1, 7], [1, 8], [1, 9]
    ]  # fmt: skip
    ragged = Window(16, 0.2).mask(noise(1, 1, 20, 8), noise(1, 1, 70, 8)).kept  # rows lie at tokens 50 to 66 to 70
    assert ragged[0, 0].nonzero().tolist() == [[0, 3], [1, 4]]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: XAttention(p=0), "p"),
        (lambda: XAttention(p=1.01), "p"),
        (lambda: XAttention(p=math.nan), "p"),
        (lambda: XAttention(p=True), "p"),
        (lambda: XAttention(p="0.9"), "p"),  # type: ignore[arg-type]
        (lambda: XAttention(p=[]), "p"),
        (lambda: XAttention(p=[0.5, 0.5]), "p"),  # type: ignore[list-item]
        (lambda: XAttention(p=[[0.5], []]), "p"),
        (lambda: XAttention(p=[[0.5, 0.5], [0.5, 2.0]]), "p of layer 1, head 1"),
        (lambda: XAttention(stride=0), "stride"),
        (lambda: XAttention(stride=12), "stride"),
        (lambda: XAttention(block=8), "stride"),  # the default stride is wider than this block
        (lambda: XAttention(block=0), "block"),
        (lambda: XAttention(block=128.0), "block"),  # type: ignore[arg-type]
        (lambda: TopK(stride=48), "stride"),
        (lambda: TopK(density=0), "density"),
        (lambda: TopK(density=1.5), "density"),
        (lambda: Window(density=-0.5), "density"),
        (lambda: Window(block=-1), "block"),
        (lambda: antidiagonal_scores(noise(1, 1, 8, 4), noise(1, 1, 8, 4), 16, 5), "stride"),
        (lambda: SparseMask(torch.ones(1, 1, 2, 2, dtype=torch.bool), 16, 32, 33), "kept"),
        (lambda: SparseMask(torch.ones(1, 1, 2, 2), 16, 32, 32), "kept"),
    ],
)
def test_wrong_settings_name_their_field(make: Callable[[], object], field: str) -> None:
    with pytest.raises(SettingError) as caught:
        make()
    assert caught.value.field == field


def test_density_counts_tokens_and_not_blocks() -> None:
    kept = torch.tensor([[[[True, False, True], [False, False, True]]]])
    mask = SparseMask(kept, 16, 20, 36)  # 16 + 4 queries, 16 + 16 + 4 keys
    assert mask.kept_pairs().tolist() == [[16 * 20 + 4 * 4]]
    assert mask.density().item() == pytest.approx((16 * 20 + 4 * 4) / (20 * 36))
