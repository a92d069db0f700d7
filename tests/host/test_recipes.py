"""Parts from outside the package are offered by the nodes with their own fields, and run (docs/architecture.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hostkit import module

options = module("flowcache_core.options")
reuse = module("flowcache_core.reuse")
kv = module("flowcache_core.kv")
plans = module("flowcache_core.plan")
Interval = module("flowcache_core.reuse.interval").Interval
Recent = module("flowcache_core.kv.recent").Recent
Blockwise = module("flowcache_core.plan.blockwise").Blockwise


@dataclass(frozen=True)
class Own(Interval):
    name: ClassVar[str] = "own policy"
    every: int = field(default=4, metadata={options.KEY: options.Option("Own.", minimum=1, maximum=9, place=20)})


@dataclass(frozen=True)
class Kept(Recent):
    name: ClassVar[str] = "own compressor"
    share: float = field(default=0.5, metadata={options.KEY: options.Option("Own.", minimum=0.0, maximum=1.0)})


@dataclass(frozen=True)
class Ordered(Blockwise):
    name: ClassVar[str] = "own plan"
    title: ClassVar[str] = "own order"


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry, part in ((reuse.POLICIES, Own), (kv.COMPRESSORS, Kept), (plans.PLANS, Ordered)):
        monkeypatch.setitem(registry, part.name, part)


def entries(node: Any, list_field: str, choice: str) -> dict[str, Any]:
    """The fields that a choice of a node's list reveals, by name."""
    inputs = {entry.id: entry for entry in node.define_schema().inputs}
    return {entry.id: entry for option in inputs[list_field].options if option.key == choice for entry in option.inputs}


def test_a_policy_is_in_the_reuse_node() -> None:
    nodes = module("nodes.reuse")
    found = entries(nodes.ChunkwiseReuse, "preset", "custom")
    assert "own policy" in found["policy"].options and (found["every"].min, found["every"].default) == (1, 4)
    fields = {name: entry.default for name, entry in found.items() if getattr(entry, "default", None) is not None}
    fields |= {"preset": "custom", "policy": "own policy", "every": 7, "cache_device": "cpu"}
    chosen = nodes.settings(fields)
    assert chosen.policy == Own(warmup_steps=1, every=7) and chosen.device == "cpu"


def test_a_saved_graph_without_the_newer_fields_still_runs() -> None:
    old = {"preset": "custom", "policy": "chunkwise", "threshold": 0.2, "warmup_steps": 3, "distance": "patch"}
    old |= {"quantity": "forecast", "max_reuses": 0, "always_last": True, "cache_device": "same as the model"}
    old |= {"computed_steps": "0", "first_chunk_steps": None, "interval": None}
    chosen = module("nodes.reuse").settings(old)
    assert chosen.policy == reuse.POLICIES["chunkwise"](
        3, True, None, threshold=0.2, distance=reuse.DISTANCES["patch"]()
    )
    assert chosen.quantity == reuse.QUANTITIES["forecast"]()


def test_a_compressor_is_in_the_compressor_node() -> None:
    nodes = module("nodes.kv")
    assert set(entries(nodes.KVCompressor, "method", "own compressor")) == {"share", "key_granularity"}
    fields = {"method": "own compressor", "share": 0.25, "key_granularity": "frame"}
    assert nodes.settings(4.0, fields, "float16", "cpu").compressor == Kept("frame", 0.25)


def test_a_plan_is_in_the_sampler_node() -> None:
    found = entries(module("nodes.samplers").ARSampler, "plan", "own order")
    assert list(found)[:3] == ["chunk_frames", "solver", "clean_pass"]


@pytest.mark.parametrize(
    "registry", [reuse.POLICIES, reuse.QUANTITIES, kv.COMPRESSORS], ids=["reuse", "quantity", "kv"]
)
def test_every_part_and_every_option_of_it_is_offered(registry: dict[str, type]) -> None:
    if registry is kv.COMPRESSORS:
        for name, part in registry.items():
            found = entries(module("nodes.kv").KVCompressor, "method", name)
            assert list(found) == list(options.options_of(part))
        return
    found = entries(module("nodes.reuse").ChunkwiseReuse, "preset", "custom")
    choice = "policy" if registry is reuse.POLICIES else "quantity"
    assert found[choice].options == list(registry)
    for part in registry.values():
        assert set(options.options_of(part)) <= set(found)
