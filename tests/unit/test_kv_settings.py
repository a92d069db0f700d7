"""What a user may ask of the K/V cache, and when asking cannot help."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from flowcache_core.errors import SettingError
from flowcache_core.kv import ImportanceRedundancy, Recent, SinkWindow
from flowcache_core.kv.settings import KVSettings
from flowcache_core.plan.base import Plan
from flowcache_core.plan.blockwise import blockwise
from flowcache_core.plan.window import window

MAGI = window(frames=60, chunk_frames=6, steps=16)  # 10 chunks, 4 active: 6 finished ones while others run


def test_defaults_store_everything_as_the_model_does() -> None:
    settings = KVSettings()
    assert (settings.budget, settings.compressor, settings.dtype, settings.device) == (None, None, None, None)
    assert settings.layer_budgets(3) == (None, None, None)


def test_a_budget_brings_the_compressor_that_measured_best() -> None:
    assert KVSettings(budget=2).compressor == SinkWindow()
    assert KVSettings(budget=[2, 1.5]).compressor == Recent()
    assert KVSettings(budget=2, compressor=ImportanceRedundancy()).compressor == ImportanceRedundancy()


def test_one_budget_or_one_per_layer() -> None:
    assert KVSettings(budget=1.5).layer_budgets(2) == (1.5, 1.5)
    settings = KVSettings(budget=[1, 2.5])
    assert settings.layer_budgets(2) == (1, 2.5)
    assert hash(settings) == hash(KVSettings(budget=(1, 2.5)))
    with pytest.raises(SettingError, match="one number, or 3: one per layer"):
        settings.layer_budgets(3)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: KVSettings(budget=0), "budget"),
        (lambda: KVSettings(budget=-1), "budget"),
        (lambda: KVSettings(budget=0.99), "budget"),
        (lambda: KVSettings(budget=math.nan), "budget"),
        (lambda: KVSettings(budget=math.inf), "budget"),
        (lambda: KVSettings(budget=True), "budget"),
        (lambda: KVSettings(budget="2"), "budget"),  # type: ignore[arg-type]
        (lambda: KVSettings(budget=[]), "budget"),
        (lambda: KVSettings(budget=[2, 0.5]), "budget"),
        (lambda: KVSettings(budget=1.9, compressor=SinkWindow()), "budget"),
        (lambda: KVSettings(dtype=torch.int8), "dtype"),
        (lambda: KVSettings(dtype=torch.float64), "dtype"),
        (lambda: KVSettings(device="gpu"), "device"),
    ],
)
def test_wrong_settings_name_their_field(make: Callable[[], KVSettings], field: str) -> None:
    with pytest.raises(SettingError) as caught:
        make()
    assert caught.value.field == field


def test_the_sink_must_leave_room_for_a_window() -> None:
    assert KVSettings(budget=2, compressor=SinkWindow()).budget == 2
    assert KVSettings(budget=1, compressor=SinkWindow(sink=0)).budget == 1
    with pytest.raises(SettingError, match="a number >= 1.5"):
        KVSettings(budget=1, compressor=SinkWindow(sink=0.5))


@pytest.mark.parametrize(
    ("settings", "plan", "note"),
    [
        (KVSettings(), MAGI, None),
        (KVSettings(budget=5.9), MAGI, None),
        (
            KVSettings(budget=6),
            MAGI,
            "budget 6 chunks is not below the 6 finished chunks this video ever has to hold: nothing to compress",
        ),
        (
            KVSettings(budget=(1, 8)),
            MAGI,
            "the budget of 1 of 2 layers is not below the 6 finished chunks this video ever has to hold: "
            "nothing to compress in them",
        ),
        (
            KVSettings(compressor=Recent()),
            MAGI,
            "compressor recent without a budget: the whole history is kept, nothing to compress",
        ),
        (
            KVSettings(budget=3),
            blockwise(frames=6, chunk_frames=6, steps=2),
            "budget 3: no chunk begins after another has finished, nothing to compress",
        ),
    ],
)
def test_note_says_when_nothing_can_change(settings: KVSettings, plan: Plan, note: str | None) -> None:
    assert settings.note(plan) == note
