"""Partial forwards: against a whole forward that is given the same K/V, and what they leave in the cache."""

from __future__ import annotations

import pytest
import torch
from kv_naive import SPEC, blocks
from magi_tiny import tiny as magi_tiny
from magi_tiny import tiny_inputs
from test_wan import TINY, inputs, tiny
from torch import Tensor

from flowcache_core.denoiser import ChunkInput
from flowcache_core.errors import SettingError
from flowcache_core.kv import ImportanceRedundancy
from flowcache_core.kv.cache import KVCache
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.common.attention import attend_heads
from flowcache_core.models.magi.layers import attend_grouped
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.plan.base import Chunk
from flowcache_core.plan.blockwise import blockwise
from flowcache_core.rows import Rows

GRID = (3, 2, 3)
CHUNK = Chunk(0, 4, 3)


class Stale:
    """Self-attention over old K/V, new at the rows: for a forward of those rows alone, and for one of all tokens."""

    def __init__(self, rows: Rows, seed: int = 5) -> None:
        draw = torch.Generator().manual_seed(seed)
        shape = (TINY.num_layers, 2, 2, TINY.num_heads, 7 + rows.tokens, TINY.head_dim)
        self.rows, self.old = rows.index, torch.randn(shape, generator=draw)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        stored = self.old[layer].clone()
        for kept, new in zip(stored, (k, v), strict=True):
            kept[:, :, 7 + self.rows] = new if new.shape[2] == len(self.rows) else new[:, :, self.rows]
        return attend_heads(q, *stored)


@pytest.mark.parametrize("per_frame", [False, True])
def test_rows_are_those_of_a_whole_forward_over_the_same_keys(per_frame: bool) -> None:
    """Angles of the rows' own places; a time per frame (an image prefix) modulates each row by its own frame's."""
    model = tiny()
    x, times, text = inputs(frames=3)
    times = times if per_frame else times[:, 0]
    rows = Rows(torch.tensor([0, 4, 5, 9, 17]), GRID)
    fixed = {"first_frame": 4, "attention": Stale(rows), "return_residual": True}
    whole, residual = model.forward_chunk(x, times, text, **fixed)
    part, part_residual = model.forward_chunk(x, times, text, rows=rows, **fixed)
    pixels = rows.pixels(x)
    assert (whole - part)[..., pixels].abs().max() < 1e-5 < (whole - part)[..., ~pixels].abs().max()
    assert (residual - part_residual)[:, rows.index].abs().max() < 1e-5
    assert part.isfinite().all()


@pytest.mark.parametrize("per_frame", [False, True])
def test_all_rows_are_the_whole_step_bit_for_bit(per_frame: bool) -> None:
    model = tiny()
    x, times, text = inputs(frames=3)
    times = times if per_frame else times[:, 0]
    rows = Rows(torch.arange(18), GRID)
    fixed = {"first_frame": 4, "attention": Stale(rows)}
    assert torch.equal(
        model.forward_chunk(x, times, text, rows=rows, **fixed), model.forward_chunk(x, times, text, **fixed)
    )


def test_rows_of_another_grid_are_refused() -> None:
    x, times, text = inputs(frames=3)
    with pytest.raises(SettingError, match="rows"):
        tiny().forward_chunk(
            x, times, text, first_frame=0, attention=lambda *qkv: qkv[1], rows=Rows(torch.tensor([0]), (3, 2, 2))
        )


@pytest.mark.parametrize("index", [[], list(range(19))])
def test_no_rows_and_too_many_are_refused(index: list[int]) -> None:
    with pytest.raises(SettingError, match="rows"):
        Rows(torch.tensor(index, dtype=torch.int64), GRID)


def test_pixels_cover_every_place_of_an_odd_frame() -> None:
    """5 x 5 places in a grid of 3 x 3 tokens: the last row and column are one place wide."""
    mask = Rows(torch.tensor([0, 8]), (1, 3, 3)).pixels(torch.zeros(1, 1, 1, 5, 5))
    assert mask[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [4, 4]]


# ---- the cache -------------------------------------------------------------------------------------------------------


def cache_of(**settings) -> tuple[KVCache, Chunk]:
    plan = blockwise(frames=4, chunk_frames=2, steps=2)
    cache = KVCache(SPEC, KVSettings(**settings), plan)
    cache.begin(plan.chunks[0])
    return cache, plan.chunks[0]


@pytest.mark.parametrize("dtype", [None, torch.float8_e4m3fn, torch.bfloat16])
def test_a_partial_write_changes_its_rows_and_no_other(dtype: torch.dtype | None) -> None:
    cache, chunk = cache_of(dtype=dtype)
    g = torch.Generator().manual_seed(0)
    first, rows = blocks(SPEC, chunk, g), Rows(torch.tensor([1, 4]), (2, 1, 3))
    for layer in range(2):
        cache.write(layer, range(2), chunk, *first[:2])
    new = [t[:, :, :2] + 8 for t in first[:2]]
    cache.write(1, range(1, 2), chunk, *(t[1:] for t in new), rows)
    for layer in range(2):
        for old, fresh, found in zip(first[:2], new, cache.context(layer, range(2), chunk), strict=True):
            expected = old.clone()
            if layer == 1:
                expected[1, :, rows.index] = fresh[1]
            assert torch.equal(found, expected)


def test_a_partial_write_needs_a_whole_one_before_it() -> None:
    cache, chunk = cache_of()
    k, v, _ = blocks(SPEC, chunk, torch.Generator().manual_seed(0))
    rows = Rows(torch.tensor([1, 4]), (2, 1, 3))
    cache.write(0, range(1), chunk, k[:1], v[:1])
    cache.write(0, range(1), chunk, k[:1, :, :2], v[:1, :, :2], rows)
    for layer, branches in ((0, range(1, 2)), (1, range(1))):
        with pytest.raises(RuntimeError, match="before all were computed"):
            cache.write(layer, branches, chunk, k[:1, :, :2], v[:1, :, :2], rows)
    with pytest.raises(ValueError, match="expected"):
        cache.write(0, range(1), chunk, k[:1], v[:1], rows)
    with pytest.raises(ValueError, match="rows of 5 tokens"):
        cache.write(0, range(1), chunk, k[:1, :, :2], v[:1, :, :2], Rows(torch.tensor([1, 4]), (1, 1, 5)))


def test_the_compressor_keeps_the_queries_of_the_last_whole_step() -> None:
    model = tiny()
    x, _, text = inputs(batch=1, frames=6)
    plan = blockwise(frames=6, chunk_frames=2, steps=4)
    denoiser = WanDenoiser(model, {0: [text[:1]]})
    kv = KVSettings(budget=1.0, compressor=ImportanceRedundancy())
    cache = KVCache(denoiser.kv_spec(x), kv, plan)
    chunk = plan.chunks[0]
    cache.begin(chunk)
    item = ChunkInput(chunk, 0, 0.9, 900.0, x[:, :, :2])
    denoiser.compute(item, cache)
    before = [buffer.queries[0].clone() for buffer in cache._layers]
    held = [buffer.tokens.keys.clone() for buffer in cache._layers]
    rows = Rows(torch.tensor([0, 11]), (2, 2, 3))
    denoiser.compute(ChunkInput(chunk, 1, 0.8, 800.0, x[:, :, :2] * 2), cache, rows=rows)
    for layer, buffer in enumerate(cache._layers):
        assert torch.equal(buffer.queries[0], before[layer])
        changed = (buffer.tokens.keys[..., :12, :] != held[layer][..., :12, :]).any(-1).any(2).flatten(0, 1).all(0)
        assert changed.nonzero().flatten().tolist() == [0, 11]


def test_magi_rows_are_those_of_a_whole_forward_over_the_same_keys() -> None:
    model = magi_tiny()
    x, t, caption, mask = tiny_inputs(2)
    whole, _ = model.forward_chunk(x, t, caption, mask, first_frame=4, attention=over_noise, return_residual=True)
    tokens = x.shape[2] * model.tokens_per_frame(x)
    grid = (x.shape[2], x.shape[3] // 2, x.shape[4] // 2)
    for index in (torch.arange(tokens), torch.tensor([0, 3, tokens - 1])):
        rows = Rows(index, grid)
        part = model.forward_chunk(x, t, caption, mask, first_frame=4, attention=over_noise, rows=rows)
        assert (part - whole)[..., rows.pixels(x)].abs().max() < 2e-5
        assert torch.equal(part, whole) or rows.count < tokens


def over_noise(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention to keys that are the same whatever the forward's own tokens are."""
    draw = torch.Generator().manual_seed(layer)
    keys, values = (torch.randn((*k.shape[:2], 9, k.shape[3]), generator=draw) for _ in range(2))
    return attend_grouped(q, keys, values)
