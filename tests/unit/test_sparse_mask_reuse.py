"""When masks serve again: the published rule, and the state that follows it through a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from flowcache_core.errors import SettingError
from flowcache_core.sparse import XAttention
from flowcache_core.sparse.context_layout import ContextLayout, moved
from flowcache_core.sparse.mask_memory import MaskMemory
from flowcache_core.sparse.mask_reuse import NO_MASK, MaskReuse, drift, means

GOLDEN = Path(__file__).parents[1] / "golden" / "sparse_attention" / "tmr_small.safetensors"
with safe_open(GOLDEN, "pt") as _file:
    ABOUT = json.loads(_file.metadata()["about"])
LAYERS, HEADS, BLOCK, OWN = 2, 4, 8, 16


# -- the rule ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ABOUT["settings"], ids=lambda s: s["name"])
def test_heads_get_new_masks_when_the_reference_says(setting: dict[str, Any]) -> None:
    t, name = load_file(GOLDEN), setting["name"]
    reuse = MaskReuse(setting["delta"], setting["relative"], setting["gate"], max_age=None)
    age = torch.full((ABOUT["layers"], ABOUT["heads"]), NO_MASK)
    anchors = torch.full((ABOUT["layers"], 2, 1, ABOUT["heads"], ABOUT["head_dim"]), math.nan)
    for step in range(ABOUT["steps"]):
        refresh = torch.zeros_like(age, dtype=torch.bool)
        if step >= setting["warmup"]:
            now = torch.stack([means(q[None], k[None]) for q, k in zip(t["q"][step], t["k"][step])])
            moved_by = drift(now, anchors, reuse.relative)
            expected = t[f"{name}.drift"][step]
            assert torch.equal(moved_by.isnan(), expected.isnan())
            assert torch.allclose(moved_by, expected, rtol=1e-5, equal_nan=True)
            refresh = reuse.refresh(moved_by, age)
            anchors = torch.where(refresh[:, None, None, :, None], now, anchors)
            age = torch.where(refresh, 0, age + 1)
        assert torch.equal(refresh, t[f"{name}.refresh"][step].bool())
        assert torch.equal(age, t[f"{name}.age"][step].long())


def test_equality_serves_and_the_cap_does_not_ask() -> None:
    reuse = MaskReuse(0.5, gate=None, max_age=3)
    ages = torch.tensor([0, 0, 1, 2, NO_MASK, 0])
    drifts = torch.tensor([0.5, 0.75, 0.1, 0.1, 0.1, math.nan])
    assert reuse.refresh(drifts, ages).tolist() == [False, True, False, True, True, True]


@pytest.mark.parametrize(
    ("wishes", "expected"),
    [(0, 0), (1, 0), (2, 2), (3, 3), (4, 4), (5, 5)],  # of 5: below .4 none, above .8 all
)
def test_a_layer_votes(wishes: int, expected: int) -> None:
    drifts = torch.tensor([[1.0] * wishes + [0.0] * (5 - wishes)])
    ages = torch.ones(1, 5, dtype=torch.long)
    assert MaskReuse(max_age=None).refresh(drifts, ages).sum() == expected
    if 0 < wishes < 5:
        ages[0, -1] = NO_MASK  # no vote where a mask is missing
        assert MaskReuse(max_age=None).refresh(drifts, ages)[0].tolist() == [True] * wishes + [False] * (4 - wishes) + [
            True
        ]


def test_drift_is_that_of_the_item_that_moved_most_and_shared_keys_count_for_each_head() -> None:
    q, k = torch.randn(2, 4, 6, 8), torch.randn(1, 2, 5, 8)
    now = means(q, k)
    assert now.shape == (2, 2, 4, 8)
    assert torch.allclose(now[1, 1, 3], k[0, 1].mean(0)) and torch.allclose(now[0, 1, 3], q[1, 3].mean(0))
    then = now.clone()
    then[0, 1, 2, 0] += 3.0
    assert drift(now, then, relative=False).tolist() == pytest.approx([0.0, 0.0, 3.0, 0.0])
    assert drift(now, torch.zeros_like(now))[0] > 1e30  # an anchor at zero: any move is far
    assert drift(torch.zeros_like(now), torch.zeros_like(now)).tolist() == [0.0] * 4


# -- layouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now", "by"),
    [
        (((0, 16), (1, 16)), ((0, 16), (1, 16), (2, 16)), 2),
        (((0, 16),), ((0, 16), (1, 16)), 2),
        (((1, 16), (2, 16)), ((2, 16), (3, 16)), 0),  # a bounded memory: as long as before
        (((0, 12), (1, 12)), ((0, 12), (1, 12), (2, 12)), None),  # a chunk and a half block
        (((0, 12), (1, 12)), ((1, 12), (2, 12)), 0),
        (((0, 16), (1, 8)), ((0, 16), (1, 8), (2, 8)), None),  # chunks of other sizes
        (((0, 16), (1, 16)), ((0, 16), (1, 16), (2, 16), (3, 16)), None),
    ],
)
def test_by_how_much_a_mask_moves(before: Any, now: Any, by: int | None) -> None:
    assert ContextLayout(now).moved_from(ContextLayout(before), BLOCK) == by


def test_another_batch_or_a_compression_between_does_not_fit() -> None:
    chunks = ((0, 16), (1, 16))
    grown = (*chunks, (2, 16))
    assert ContextLayout(chunks, batch=2).moved_from(ContextLayout(chunks), BLOCK) is None
    assert ContextLayout(grown, 1).moved_from(ContextLayout(chunks, 0), BLOCK) is None


def test_the_first_chunk_stays_and_the_rest_moves() -> None:
    kept = torch.tensor([[True, False, True, True, False, True]])
    assert moved(kept, 2).tolist() == [[True, False, True, False, True, True, False, True]]
    assert torch.equal(moved(kept, 0), kept)


# -- the state ---------------------------------------------------------------------------------------------------------


class Run:
    """A chunk's steps through a memory, as a denoiser takes them; Q and K are random and the same in every run."""

    def __init__(self, reuse: MaskReuse, batch: int = 1, wander: float = 0.0) -> None:
        self.memory = MaskMemory(reuse, LAYERS, HEADS, BLOCK)
        self.method = XAttention(block=BLOCK, stride=4, p=0.5)
        self.batch, self.wander = batch, wander
        self.predicted: list[tuple[int, list[int]]] = []

    def tensors(self, chunk: int, step: int, layer: int, context: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(1000 * chunk + layer)
        q, k = torch.randn(self.batch, HEADS, OWN, 8, generator=g), torch.randn(self.batch, 2, context, 8, generator=g)
        return q + 1 + self.wander * step, k + 1 + self.wander * step

    def step(self, chunk: int, step: int, layout: ContextLayout, layers: Sequence[int] = range(LAYERS)) -> list[Tensor]:
        key = (chunk, 0)
        drifts = self.memory.drifts(key, step)
        self.refresh = self.memory.decide(key, step, layout, None if drifts is None else drifts.cpu())
        self.predicted, masks = [], []
        for layer in layers:
            q, k = self.tensors(chunk, step, layer, sum(layout.sizes))

            def predict(heads: Sequence[int], q: Tensor = q, k: Tensor = k, layer: int = layer) -> Tensor:
                self.predicted.append((layer, list(heads)))
                return self.method.mask(q, k, layer, heads).kept

            masks.append(self.memory.kept(key, layer, q, k[:, :, -layout.sizes[-1] :], predict))
        self.memory.leave(key, step)
        return masks

    def fresh(self, chunk: int, step: int, layer: int, layout: ContextLayout) -> Tensor:
        return self.method.mask(*self.tensors(chunk, step, layer, sum(layout.sizes))).kept


def layout(*chunks: int, dropped: int = 0, batch: int = 1) -> ContextLayout:
    return ContextLayout(tuple((chunk, OWN) for chunk in chunks), dropped, batch)


ALL = [(layer, list(range(HEADS))) for layer in range(LAYERS)]


def test_a_mask_is_made_once_while_nothing_drifts() -> None:
    run = Run(MaskReuse(max_age=None))
    masks = run.step(2, 0, layout(0, 1, 2))
    assert run.predicted == ALL
    for layer, mask in enumerate(masks):
        assert torch.equal(mask, run.fresh(2, 0, layer, layout(0, 1, 2)))
    for step in range(1, 12):
        again = run.step(2, step, layout(0, 1, 2))
        assert run.predicted == [] and all(map(torch.equal, masks, again))


def test_the_cap_renews_it() -> None:
    run = Run(MaskReuse(max_age=4))
    made = [bool((run.step(2, step, layout(0, 1, 2)), run.predicted)[1]) for step in range(9)]
    assert made == [step % 4 == 0 for step in range(9)]


def test_decisions_lag_by_one_step_and_anchors_are_of_the_step_the_mask_was_made() -> None:
    run = Run(MaskReuse(drift=0.15, gate=None, max_age=None), wander=0.1)  # means grow by a tenth of the first a step
    made = []
    for step in range(6):
        run.step(2, step, layout(0, 1, 2))
        made.append([heads for _, heads in run.predicted] != [])
    # Step 2 is a fifth away from step 0, which step 3 is the first to know. It is its own anchor then.
    assert made == [True, False, False, True, False, False]


def test_heads_are_renewed_one_by_one() -> None:
    class Odd(Run):
        def tensors(self, chunk: int, step: int, layer: int, context: int) -> tuple[Tensor, Tensor]:
            q, k = super().tensors(chunk, 0, layer, context)
            if step > 0 and layer == 1:
                q[:, 2] = -q[:, 2].flip(-2)
            return q, k

    run = Odd(MaskReuse(gate=None, max_age=None), batch=2)
    first = run.step(2, 0, layout(0, 1, 2, batch=2))
    run.step(2, 1, layout(0, 1, 2, batch=2))
    assert run.predicted == []  # not known yet
    third = run.step(2, 2, layout(0, 1, 2, batch=2))
    assert run.predicted == [(1, [2])] and run.refresh.predicted.nonzero().tolist() == [[1, 2]]
    assert torch.equal(third[0], first[0]) and torch.equal(third[1][:, [0, 1, 3]], first[1][:, [0, 1, 3]])
    assert torch.equal(third[1][:, 2], run.fresh(2, 2, 1, layout(0, 1, 2))[:, 2])
    run.step(2, 3, layout(0, 1, 2, batch=2))
    assert run.predicted == []


@pytest.mark.parametrize(
    "then",
    [
        layout(0, 1, 2, dropped=1),
        layout(1, 2),
        layout(1, 0, 2),
        ContextLayout(((0, OWN), (1, 8), (2, OWN))),
        layout(0, 1, 2, batch=2),
    ],
)
@pytest.mark.parametrize("across", [False, True])
def test_a_mask_dies_with_its_layout(then: ContextLayout, across: bool) -> None:
    run = Run(MaskReuse(across_chunks=across))
    run.step(2, 0, layout(0, 1, 2))
    run.batch = then.batch
    masks = run.step(2, 1, then)
    assert run.predicted == ALL
    for layer, mask in enumerate(masks):
        assert torch.equal(mask, run.fresh(2, 1, layer, then))
    run.step(2, 2, then)
    assert run.predicted == []


def test_branches_and_chunks_have_masks_of_their_own() -> None:
    run = Run(MaskReuse())
    run.step(2, 0, layout(0, 1, 2))
    run.step(3, 0, layout(0, 1, 2, 3))
    assert run.predicted == ALL
    assert run.memory.drifts((2, 1), 1) is None and run.memory.drifts((2, 0), 1) is not None
    run.memory.finish(2)
    assert set(run.memory.masks) == {(3, 0)}
    run.memory.finish(3)
    assert not run.memory.masks and run.memory.bytes == 0


def test_layers_that_are_dense_take_no_part() -> None:
    run = Run(MaskReuse(across_chunks=True))
    for step in range(3):
        run.step(2, step, layout(0, 1, 2), layers=[1])
    assert run.predicted == []
    run.step(3, 0, layout(0, 1, 2, 3), layers=[1])
    assert run.predicted == [] and run.refresh.adopted.tolist() == [[False] * HEADS, [True] * HEADS]


# -- across chunks -----------------------------------------------------------------------------------------------------


class Same(Run):
    """All chunks alike, so that the masks of one serve the next."""

    def tensors(self, chunk: int, step: int, layer: int, context: int) -> tuple[Tensor, Tensor]:
        return super().tensors(0, step, layer, context)


def test_a_chunk_takes_over_the_masks_of_the_one_before_at_the_same_step() -> None:
    run = Same(MaskReuse(across_chunks=True, max_age=3))
    before = [run.step(2, step, layout(0, 1, 2)) for step in range(5)]
    for step in range(5):
        masks = run.step(3, step, layout(0, 1, 2, 3))
        if step == 0:
            assert run.predicted == [] and bool(run.refresh.adopted.all())
            assert all(torch.equal(mask, moved(old, 2)) for mask, old in zip(masks, before[0]))
        elif step < 3:
            assert run.predicted == [] and not run.refresh.adopted.any()  # its own by now
    run.memory.finish(2)
    assert run.memory.bytes > 0
    run.step(4, 4, layout(0, 1, 2, 3, 4))
    assert run.predicted == [] and bool(run.refresh.adopted.all())


def test_masks_of_a_chunk_that_is_different_are_not_taken_over_once_that_is_known() -> None:
    class Jumps(Run):
        def tensors(self, chunk: int, step: int, layer: int, context: int) -> tuple[Tensor, Tensor]:
            q, k = super().tensors(chunk, step, layer, context)
            return (q, k) if chunk == 2 else (-q, -k)

    run = Jumps(MaskReuse(across_chunks=True, gate=None, max_age=None))
    for step in range(3):
        run.step(2, step, layout(0, 1, 2))
    run.step(3, 0, layout(0, 1, 2, 3))
    assert run.predicted == []  # nothing is known of it
    run.step(3, 1, layout(0, 1, 2, 3))
    assert run.predicted == ALL and not run.refresh.adopted.any()


def test_the_step_taken_over_is_the_last_one_computed_and_none_before_there_is_one() -> None:
    run = Same(MaskReuse(across_chunks=True))
    run.step(2, 3, layout(0, 1, 2))
    run.step(3, 2, layout(0, 1, 2, 3))
    assert run.predicted == ALL  # the chunk before was dense up to here
    run = Same(MaskReuse(across_chunks=True))
    run.step(2, 3, layout(0, 1, 2))
    run.step(3, 5, layout(0, 1, 2, 3))
    assert run.predicted == []
    off = Same(MaskReuse())
    off.step(2, 3, layout(0, 1, 2))
    off.step(3, 3, layout(0, 1, 2, 3))
    assert off.predicted == ALL and not off.memory.history


def test_history_holds_a_mask_once() -> None:
    run = Same(MaskReuse(across_chunks=True, max_age=None))
    run.step(2, 0, layout(0, 1, 2))
    once = run.memory.bytes
    for step in range(1, 8):
        run.step(2, step, layout(0, 1, 2))
    assert run.memory.bytes == once == LAYERS * HEADS * 2 * 6


def test_nothing_waits_for_the_device() -> None:
    """Tensors without data stand for those of a GPU: to read one of them, which would be a sync, raises."""

    class Meta(Run):
        def tensors(self, chunk: int, step: int, layer: int, context: int) -> tuple[Tensor, Tensor]:
            q, k = super().tensors(chunk, step, layer, context)
            return q.to("meta"), k.to("meta")

    run = Meta(MaskReuse(across_chunks=True))
    with pytest.raises((RuntimeError, NotImplementedError)):
        run.tensors(2, 0, 0, OWN)[0].sum().item()
    for chunk in (2, 3):
        context = layout(*range(chunk + 1))
        for step, wanted in enumerate([0.0, 0.0, 1.0]):  # some heads, by what would have been read
            key = (chunk, 0)
            known = run.memory.drifts(key, step)
            assert known is None or (known.is_meta and known.shape == (2, LAYERS, HEADS))
            drifts = None if known is None else torch.tensor([wanted, wanted, 0.0, 0.0]).expand(2, LAYERS, HEADS)
            run.memory.decide(key, step, context, drifts)
            for layer in range(LAYERS):
                q, k = run.tensors(chunk, step, layer, OWN * (chunk + 1))
                predict = lambda heads, q=q, k=k, layer=layer: run.method.mask(q, k, layer, heads).kept  # noqa: E731
                assert run.memory.kept(key, layer, q, k[:, :, -OWN:], predict).is_meta
            run.memory.leave(key, step)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: MaskReuse(drift=-0.1), "drift"),
        (lambda: MaskReuse(drift=math.nan), "drift"),
        (lambda: MaskReuse(gate=(0.8, 0.4)), "gate"),
        (lambda: MaskReuse(gate=(0.4, 1.1)), "gate"),
        (lambda: MaskReuse(gate=(0.4,)), "gate"),  # type: ignore[arg-type]
        (lambda: MaskReuse(gate=("a", "b")), "gate"),  # type: ignore[arg-type]
        (lambda: MaskReuse(max_age=0), "max_age"),
        (lambda: ContextLayout(((0, 0),)), "tokens"),
        (lambda: ContextLayout(((-1, 5),)), "chunk"),
        (lambda: ContextLayout(((0, 5),), -1), "dropped"),
        (lambda: ContextLayout(((0, 5),), 0, 0), "batch"),
    ],
)
def test_wrong_settings_name_their_field(make: Callable[[], object], field: str) -> None:
    with pytest.raises(SettingError) as caught:
        make()
    assert caught.value.field == field
