"""Evaluations under reuse and compression: what the options ask of the engine."""

from __future__ import annotations

import argparse

import pytest
import torch

from flowcache_core.errors import SettingError
from flowcache_core.kv import COMPRESSORS
from flowcache_core.mini.run_options import add_run_arguments, one_by_one, run_changes
from flowcache_core.reuse import POLICIES
from flowcache_core.reuse.build import build_policy


def changes(*given: str, chunks: int = 4, steps: int = 50):
    parser = argparse.ArgumentParser()
    add_run_arguments(parser, "mini")
    options = parser.parse_args(list(given))
    options.chunks, options.steps = chunks, steps
    return run_changes(options, 3.0)


def test_nothing_asked_is_a_plain_run() -> None:
    asked = changes()
    assert set(asked) == {"kv"} and asked["kv"].budget is None and asked["kv"].dtype is None


def test_a_preset_brings_policy_and_quantity() -> None:
    asked = changes("--preset", "balanced")
    assert asked["policy"].name == "schedule" and "quantity" in asked
    with pytest.raises(SettingError):
        changes("--preset", "balanced", steps=20)
    assert changes("--preset", "balanced", "--rescale", steps=20)["policy"].name == "schedule"


def test_budget_compressor_and_storage() -> None:
    asked = changes("--kv-budget", "half", "--compressor", "sink-window" if "sink-window" in COMPRESSORS else "recent")
    assert asked["kv"].budget == 2 and asked["kv"].compressor is not None
    assert changes("--kv-budget", "1.5", chunks=8)["kv"].budget == 1.5
    assert changes("--kv-dtype", "float8_e4m3fn")["kv"].dtype is torch.float8_e4m3fn


@pytest.mark.parametrize(
    "given", [("--preset", "none such"), ("--compressor", "zip"), ("--kv-dtype", "int3"), ("--kv-budget", "-1")]
)
def test_what_there_is_not_is_refused(given: tuple[str, str]) -> None:
    with pytest.raises(SettingError):
        changes(*given)


def test_policies_that_look_at_the_content_run_alone() -> None:
    assert not one_by_one(None) and not one_by_one(build_policy({"name": "never"}))
    assert one_by_one(build_policy({"name": "chunkwise"})) and "chunkwise" in POLICIES


def test_storage_by_name() -> None:
    kv = changes("--kv-storage", "int4", "--kv-budget", "2")["kv"]
    assert kv.storage.name == "int4" and kv.budget == 2
    assert changes()["kv"].storage.name == "plain"
    with pytest.raises(SettingError, match="kv-storage: got 'int1', accepted: plain, int8, int4, int2, centroid"):
        changes("--kv-storage", "int1")
