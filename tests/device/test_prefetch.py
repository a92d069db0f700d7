"""K/V on the host: copied ahead of the layer that reads it, never read before it is there, and nothing left of it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from lanes import Behind
from test_laws import DEVICE, FIXED

from flowcache_core.kv import prefetch
from flowcache_core.kv.cache import KVCache
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.sink_window import SinkWindow

LAYERS = tiny.WAN.num_layers


class Late(Behind):
    """The slowest lane there may be: a copy is made when somebody waits for it, and not a moment earlier."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def run(self, copies: Callable[[], None]) -> None:
        self.waiting.append(copies)

    def join(self) -> None:
        for copies in self.waiting:
            copies()
        self.waiting.clear()


def run(device: str, kv: KVSettings, plan: str, magi: bool = False) -> torch.Tensor:
    make, denoiser = (tiny.magi_settings, tiny.magi_denoiser) if magi else (tiny.settings, tiny.wan)
    fields: dict[str, Any] = {"policy": FIXED, "kv": kv} if magi else {"policy": FIXED, "kv": kv, "plan": plan}
    model = denoiser(device, base=True) if magi else denoiser(device)  # type: ignore[call-arg]
    return tiny.watched(model, make(**fields), device).latents


KINDS = [
    pytest.param({}, "staggered", False, id="whole-history"),
    pytest.param({"budget": 1.0, "compressor": Recent()}, "blockwise", False, id="budget"),
    pytest.param({"budget": 2.0, "compressor": SinkWindow()}, "blockwise", False, id="sink-window"),
    pytest.param({"budget": (1.0, 2.0), "compressor": Recent()}, "blockwise", False, id="a-budget-for-each-layer"),
    pytest.param({"dtype": torch.bfloat16}, "staggered", False, id="another-format"),
    pytest.param({"budget": 1.0, "compressor": Recent()}, "window", True, id="magi"),
]


@pytest.mark.parametrize("lane", [Behind, Late])
@pytest.mark.parametrize(("kv", "plan", "magi"), KINDS)
def test_no_bit_changes_however_late_a_copy_is(count, monkeypatch, lane, kv, plan, magi):
    """Buffers begin as NaN, so that what is read too early shows."""
    made: list[prefetch.Prefetch] = []
    empty = torch.empty

    class Watched(prefetch.Prefetch):
        def __init__(self, place: Any) -> None:
            super().__init__(place, lane())
            made.append(self)

    def poisoned(*shape: Any, **fields: Any) -> torch.Tensor:
        fresh = empty(*shape, **fields)
        return fresh.fill_(float("nan")) if fresh.is_floating_point() and fresh.device.type == DEVICE else fresh

    expected = run("cpu", KVSettings(**kv), plan, magi)
    monkeypatch.setattr("flowcache_core.kv.cache.Prefetch", Watched)
    monkeypatch.setattr(torch, "empty", poisoned)
    assert torch.equal(run(DEVICE, KVSettings(**kv, device="cpu"), plan, magi), expected)
    assert len(made) == 1 and made[0].taken > 0


def test_a_chunk_s_own_tokens_do_not_come_back_from_the_host(count):
    """Every layer copies the history, and of that nothing twice in a forward."""
    settings = tiny.settings(plan="blockwise", kv=KVSettings(device="cpu"))
    watched = tiny.watched(tiny.wan(DEVICE), settings, DEVICE, count)
    place = ("cpu to pretend", "kv/storage/tokens.py copy_runs")
    moved = sum(
        copy.bytes for copies in watched.copies.values() for copy in copies if (copy.direction, copy.site) == place
    )
    token = 2 * 4 * tiny.WAN.dim * 2 * LAYERS  # keys and values, two branches, all layers
    history = sum(chunk.first_frame for chunk in settings.plan.chunks) * 4  # tokens a frame
    assert moved == history * token * tiny.STEPS


def test_two_layers_at_most_and_nothing_afterwards(count, monkeypatch):
    most, caches, made = [0], [], []
    attend, begin = KVCache.attend, KVCache.begin

    def seen(self: KVCache, *args: Any, **kwargs: Any) -> Any:
        out = attend(self, *args, **kwargs)
        most[0] = max(most[0], self._reading.bytes)
        made.extend(weakref.ref(one) for one in self._reading._buffers if one is not None)  # type: ignore[union-attr]
        return out

    def begun(self: KVCache, *args: Any) -> Any:
        caches.append(self.bytes / LAYERS)
        return begin(self, *args)

    monkeypatch.setattr(KVCache, "attend", seen)
    monkeypatch.setattr(KVCache, "begin", begun)
    run(DEVICE, KVSettings(device="cpu"), "staggered")
    assert 0 < most[0] <= 2 * caches[0]
    gc.collect()
    assert made and not [one for one in made if one() is not None]


def test_what_is_written_behind_its_back_is_read_anew(count):
    """A chunk's K/V changes after the next layer's copy has begun: what is read is what was written last."""
    settings = tiny.settings(plan="staggered", kv=KVSettings(device="cpu"))
    spec = tiny.wan(DEVICE).kv_spec(tiny.drawn(1, 16, 2, 4, 4).to(DEVICE))
    cache = KVCache(spec, settings.kv, settings.plan)
    first, second = settings.plan.chunks[:2]
    shape = (2, 3, first.frames * 4, 16)

    def kv(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        return tiny.drawn(*shape, seed=seed).to(DEVICE), tiny.drawn(*shape, seed=seed + 1).to(DEVICE)

    for chunk in (first, second):
        cache.begin(chunk)
        for layer in range(LAYERS):
            cache.write(layer, range(2), chunk, *kv(1))
    cache.write(0, range(2), second, *kv(3))
    cache.context(0, range(2), second)  # begins to copy the next layer's
    newer = kv(5)
    cache.write(1, range(2), first, *newer)
    cache.write(1, range(2), second, *kv(7))
    keys, values = cache.context(1, range(2), second)
    assert torch.equal(keys[:, :, : shape[2]].cpu(), newer[0].cpu())
    assert torch.equal(values[:, :, : shape[2]].cpu(), newer[1].cpu())
    assert torch.equal(keys[:, :, shape[2] :].cpu(), kv(7)[0].cpu())


@pytest.mark.parametrize("lane", [Behind, Late])
def test_what_is_read_again_without_a_write_comes_from_the_host(count, monkeypatch, lane):
    """As when only some of a chunk's tokens are computed, or a branch takes over another's."""
    monkeypatch.setattr(prefetch, "lane_of", lambda place: lane())
    settings = tiny.settings(plan="blockwise", kv=KVSettings(device="cpu"))
    spec = tiny.wan(DEVICE).kv_spec(tiny.drawn(1, 16, 2, 4, 4).to(DEVICE))
    cache = KVCache(spec, settings.kv, settings.plan)
    chunk = settings.plan.chunks[0]
    written = [tiny.drawn(2, 3, chunk.frames * 4, 16, seed=seed) for seed in (1, 2)]
    cache.begin(chunk)
    for layer in range(LAYERS):
        cache.write(layer, range(2), chunk, *(one.to(DEVICE) for one in written))
    for _ in range(2):
        for layer in range(LAYERS):
            found = cache.context(layer, range(2), chunk)
            assert all(torch.equal(one.cpu(), own) for one, own in zip(found, written, strict=True))
    # One branch alone, and its newest tokens alone.
    keys, values = cache.context(1, range(1, 2), chunk, newest=3)
    assert torch.equal(keys.cpu(), written[0][1:, :, -3:]) and torch.equal(values.cpu(), written[1][1:, :, -3:])
