"""K/V by megabytes: the knapsack against trying everything, what a table says, and what a run then holds."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch

from flowcache_core.errors import SettingError
from flowcache_core.kv import COMPRESSORS
from flowcache_core.kv import allocate as module
from flowcache_core.kv.allocate import MEGA, allocate, budgets_up_to, choices
from flowcache_core.kv.auto import AutoKV
from flowcache_core.kv.cache import KVCache
from flowcache_core.kv.profile import ErrorProfile, Sizes, profile_for, read_profile, shipped
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.size import layer_bytes, read_bytes, run_bytes
from flowcache_core.kv.spec import KVSpec
from flowcache_core.kv.storage import STORAGES
from flowcache_core.plan.blockwise import blockwise

SPEC = KVSpec(layers=3, kv_heads=2, head_dim=16, tokens_per_frame=64, branches=1, batch=1)
PLAN = blockwise(18, 3, 2)


def profile(seed: int = 0, layers: int = 3) -> ErrorProfile:
    """Errors that fall with the share, at random and another way in every layer."""
    g, shares = torch.Generator().manual_seed(seed), (0.2, 0.4, 0.6, 0.8, 1.0)
    errors = {}
    for compressor, floor in (("recent", 0.0), ("sink-window", 0.0)):
        errors[compressor] = {}
        for storage, extra in (("plain", 0.0), ("int4", 0.02), ("int2", 0.1)):
            fall = torch.rand(len(shares), layers, generator=g).cumsum(0).flip(0) / 5 + extra + floor
            errors[compressor][storage] = tuple(tuple(row) for row in fall.tolist())
    return ErrorProfile("test", Sizes.of(replace(SPEC, layers=layers)), shares, errors)


def by_trying(table: ErrorProfile) -> list[tuple[int, float]]:
    """Bytes and mean error of every combination of layers' budgets."""
    found, history = [], 5.0
    for name, by_storage in table.errors.items():
        budgets = budgets_up_to(history, COMPRESSORS[name]())
        for stored in by_storage:
            one = {b: KVSettings(b, COMPRESSORS[name](), storage=STORAGES[stored]()) for b in budgets}
            held = {budget: layer_bytes(SPEC, kv, PLAN, budget) for budget, kv in one.items()}
            read = {budget: read_bytes(SPEC, kv, PLAN) for budget, kv in one.items()}
            for combination in product(budgets, repeat=SPEC.layers):
                size = sum(held[budget] for budget in combination) + read[max(combination)]
                parts = (table.error(name, stored, b / history, i) for i, b in enumerate(combination))
                found.append((size, sum(parts) / SPEC.layers))
    return found


@pytest.mark.parametrize("seed", range(4))
def test_the_knapsack_is_solved_exactly(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STEP", 1.0)
    table = profile(seed)
    whole, every = run_bytes(SPEC, KVSettings(), PLAN) / MEGA, by_trying(table)
    for share in (0.45, 0.6, 0.8, 0.99):
        found = allocate(SPEC, PLAN, whole * share, table, True, KVSettings())
        assert found.bytes <= whole * share * MEGA and found.bytes == run_bytes(SPEC, found.settings, PLAN)
        assert found.error == pytest.approx(
            min(error for size, error in every if size <= whole * share * MEGA), rel=1e-9
        )


def headed(seed: int) -> ErrorProfile:
    """As :func:`profile`, for three layers of two heads that differ much."""
    g, shares = torch.Generator().manual_seed(seed), (0.2, 0.4, 0.6, 0.8, 1.0)
    errors = {}
    for compressor in ("recent", "sink-window"):
        errors[compressor] = {}
        for storage, extra in (("plain", 0.0), ("int4", 0.02)):
            fall = torch.rand(len(shares), 6, generator=g).pow(3).cumsum(0).flip(0) / 9 + extra
            errors[compressor][storage] = tuple(tuple(row) for row in fall.tolist())
    return ErrorProfile("test", Sizes.of(SPEC), shares, errors)


@pytest.mark.parametrize("seed", range(3))
def test_shares_of_heads_are_the_best_of_all(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every combination of layers' budgets, and of the budgets of all heads of a model with two."""
    monkeypatch.setattr(module, "STEP", 2.0)
    table, history = headed(seed), 5.0
    whole, every = run_bytes(SPEC, KVSettings(), PLAN), by_trying(table)
    for name, by_storage in table.errors.items():
        budgets = budgets_up_to(history, COMPRESSORS[name]())
        for stored in by_storage:
            parts = {budget: table.parts(name, stored, budget / history) for budget in budgets}
            for row in product(budgets, repeat=6):
                pairs = tuple(row[at : at + 2] for at in (0, 2, 4))
                kv = KVSettings(pairs, COMPRESSORS[name](), storage=STORAGES[stored]())
                error = sum(parts[budget][at] for at, budget in enumerate(row)) / SPEC.layers
                every.append((run_bytes(SPEC, kv, PLAN), error))
    better = 0
    for share in (0.5, 0.7, 0.9):
        found = allocate(SPEC, PLAN, share * whole / MEGA, table, True, KVSettings())
        assert found.bytes == run_bytes(SPEC, found.settings, PLAN) <= share * whole
        assert found.error == pytest.approx(min(error for size, error in every if size <= share * whole), rel=1e-9)
        layers = allocate(SPEC, PLAN, share * whole / MEGA, table, True, KVSettings(), heads=False)
        assert not layers.settings.by_head
        better += found.error < 0.99 * layers.error
        assert found.settings.by_head == ("layer and head" in found.text(1.0, table, True))
    assert better


def test_more_bytes_never_mean_more_error_and_the_whole_fits_at_last() -> None:
    table = profile(5)
    whole = run_bytes(SPEC, KVSettings(), PLAN) / MEGA
    found = [allocate(SPEC, PLAN, whole * share, table, True, KVSettings()) for share in (0.4, 0.5, 0.7, 0.9, 1.0)]
    assert all(a.error >= b.error for a, b in zip(found, found[1:]))
    assert found[-1].settings == KVSettings() and found[-1].error == 0


def test_less_room_than_one_layer_of_the_whole_takes() -> None:
    """Three layers of a long video in a tenth of its bytes: no layer may keep all, and some keep more than others."""
    plan = blockwise(180, 3, 2)
    room = 0.1 * run_bytes(SPEC, KVSettings(), plan) / MEGA
    found = allocate(SPEC, plan, room, profile(2), True, KVSettings())
    assert 0.9 * room * MEGA < found.bytes <= room * MEGA and max(found.settings.budgets) < 59


def test_another_model_s_table_gives_all_layers_the_same() -> None:
    found = allocate(SPEC, PLAN, 0.6 * run_bytes(SPEC, KVSettings(), PLAN) / MEGA, profile(1, 7), False, KVSettings())
    assert len(found.settings.budgets) == 1
    assert "not on this model" in found.text(1.0, profile(1, 7), False)


def test_too_few_megabytes_say_the_least_that_works() -> None:
    with pytest.raises(SettingError, match="megabytes: got 0.001, accepted: ([0-9.]+) or more") as caught:
        allocate(SPEC, PLAN, 0.001, profile(), True, KVSettings())
    least = float(str(caught.value).split("accepted: ")[1].split(" ")[0])
    allocate(SPEC, PLAN, least, profile(), True, KVSettings())
    with pytest.raises(SettingError):
        allocate(SPEC, PLAN, least - 0.02, profile(), True, KVSettings())
    with pytest.raises(SettingError, match="megabytes"):
        AutoKV(megabytes=0.0)


def test_only_storages_that_take_the_heads() -> None:
    odd = replace(SPEC, head_dim=15)
    stored = {one.settings.storage.name for one in choices(odd, PLAN, profile(), True, KVSettings())}
    assert stored == {"plain"}


def test_budgets_of_a_long_video_are_few_and_reach_its_length() -> None:
    found = budgets_up_to(300.0, COMPRESSORS["sink-window"]())
    assert found[0] == 2.0 and found[-1] == 300.0 and len(found) <= 25 and found == sorted(set(found))
    assert budgets_up_to(0.0, COMPRESSORS["recent"]()) == [1.0]


def test_a_cache_of_megabytes_holds_no_more() -> None:
    auto = AutoKV(megabytes=0.5 * run_bytes(SPEC, KVSettings(), PLAN) / MEGA)
    cache, g = KVCache(SPEC, auto, PLAN), torch.Generator().manual_seed(0)
    for chunk in PLAN.chunks:
        cache.begin(chunk)
        for layer in range(SPEC.layers):
            k, v, q = (torch.randn(1, 2, 192, 16, generator=g) for _ in range(3))
            cache.write(layer, range(1), chunk, k, v)
            cache.observe(layer, range(1), chunk, q)
            cache.context(layer, range(1), chunk)
        assert cache.bytes + cache.read_bytes <= auto.megabytes * MEGA
        cache.commit(chunk)
    assert cache.settings.budgets and cache.peak_bytes == run_bytes(SPEC, auto, PLAN) - cache.most_read_bytes()
    assert "MB" in auto.choice(SPEC, PLAN) and cache.settings.choice(SPEC, PLAN) == ""


def test_a_table_between_and_below_what_was_measured() -> None:
    errors = {"recent": {"plain": ((0.4, 0.2), (0.0, 0.0))}}
    table = ErrorProfile("x", Sizes(2, 1, 1, 1), (0.25, 0.5, 1.0), errors)  # the compressor begins at a half
    assert table.error("recent", "plain", 0.5, 0) == 0.4
    assert table.error("recent", "plain", 0.75, None) == pytest.approx(0.15)
    assert table.error("recent", "plain", 0.25, 1) == pytest.approx(0.4) and table.error("recent", "plain", 2.0, 0) == 0


def test_shipped_tables_are_whole_and_of_the_bundled_models() -> None:
    assert {one.model for one in shipped()} == {"mini", "scenes"}
    for one in shipped():
        assert one.error("sink-window", "plain", 1.0, None) == 0 and set(one.errors) <= set(COMPRESSORS)
        spec = KVSpec(one.sizes.layers, one.sizes.kv_heads, one.sizes.head_dim, one.sizes.tokens_per_frame, 2, 1)
        assert profile_for(spec) == (one, True)
    assert profile_for(SPEC)[1] is False


def test_a_profile_of_one_s_own_goes_before_those_that_are_shipped() -> None:
    megabytes = 0.6 * run_bytes(SPEC, KVSettings(), PLAN) / MEGA
    auto = AutoKV(megabytes=megabytes, profiles=(profile(0, 7).as_json(), profile().as_json()))
    assert auto.settled(SPEC, PLAN) == allocate(SPEC, PLAN, megabytes, profile(), True, KVSettings()).settings
    assert "measured on test" in auto.choice(SPEC, PLAN)
    other = AutoKV(megabytes=megabytes, profiles=(profile(0, 7).as_json(),))
    assert "not on this model" in other.choice(SPEC, PLAN)
    with pytest.raises(SettingError, match="K/V profile"):
        AutoKV(megabytes=megabytes, profiles=("{}",))


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 3},
        {"shares": [0.5]},
        {"shares": [0.5, 0.4, 1.0]},
        {"errors": {}},
        {"errors": {"recent": {"plain": [[0.1]]}}},
        {"errors": {"recent": {"plain": [["a", 0, 0]]}}},
        {"errors": {"recent": {"plain": [[-1, 0, 0]]}}},
        {"sizes": {"layers": 3}},
        {"sizes": []},
    ],
)
def test_what_is_no_table_is_refused(change: dict, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(profile().as_json())
    assert read_profile(path) == profile()
    path.write_text(json.dumps(json.loads(profile().as_json()) | change))
    with pytest.raises(SettingError, match="K/V profile"):
        read_profile(path)
