"""Numbers, texts and lists where a link belongs, as a prompt written by hand may hold them: the field is named."""

from __future__ import annotations

import pytest
import torch
from hostkit import BLOCKWISE, CUSTOM, METHOD, NODES, SAME, load, module, node, ours, prompt

SettingError = module("flowcache_core.errors").SettingError
LOOP: list = []
LOOP.append(LOOP)
WRONG = (
    3,
    0.5,
    True,
    "model",
    "",
    [],
    [3],
    [[1, 2]],
    ["1", 0],
    {},
    {"samples": 3},
    torch.zeros(2),
    b"x",
    LOOP,
    10**400,
)
# Node, its other inputs, and the links it has.
LINKED = {
    "FlowCacheChunkwiseReuse": ({"preset": CUSTOM}, ["model", "own_preset"]),
    "FlowCacheSparseAttention": (
        {"method": {"method": "xattention", "p": 0.9, "stride": 4, "block": 16}, "dense_chunks": 2},
        ["model", "own_preset"]),
    "FlowCacheMultiGPU": ({"ranks": 2}, ["model"]),
    "FlowCacheCalibrate": ({"target": {"target": "share", "share": 0.3}, "name": "mine"}, ["model", "latent"]),
    "FlowCachePreset": (
        {"hold": False, "file": "none", "lists": "", "name": "", "save": False}, ["preset"]),
    "FlowCacheCompare": (
        {"reference": {"samples": torch.zeros(1, 16, 3, 4, 8)}, "result": {"samples": torch.zeros(1, 16, 3, 4, 8)}},
        ["vae", "model_reference", "model_result"]),
    "FlowCacheKVCompressor": ({"budget": 1.0, "method": METHOD, "dtype": SAME, "device": SAME}, ["model"]),
    "FlowCacheARSampler": ({"plan": BLOCKWISE}, ["prefix", "preview_vae"]),
    "FlowCachePromptSchedule": ({"recache": False, "start_2": 1}, ["prompt_1", "prompt_2", "prompt_3"]),
    "FlowCacheMagiPrompt": (
        {"text": "a", "special_tokens": "none", "high_quality": False, "duration": False, "motion": "unsaid",
         "look": "unsaid", "borders": False}, ["clip"]),
}  # fmt: skip


@pytest.mark.parametrize("name", LINKED)
def test_what_is_no_link_is_named(name):
    others, links = LINKED[name]
    right = {"prompt_1": prompt(), "prompt_2": prompt(8)} if "Prompt_" in name or "Schedule" in name else {}
    for field in links:
        for value in WRONG:
            with pytest.raises(SettingError) as caught:
                NODES[name].execute(**{**others, **right, field: value})
            text = str(caught.value)
            assert f", {field}: got " in text and "a link from an output" in text and len(text) < 300, text


def test_every_link_of_every_node_is_checked():
    carries = module("nodes.adapters.declared").CARRIES
    for name, kind in NODES.items():
        if name == "FlowCacheReport":
            continue
        links = [one.id for one in kind.define_schema().inputs if one.get_io_type() in carries]
        known = LINKED.get(name, ({}, []))[1]
        missing = [link for link in links if link not in known and link != "prompt_4"]
        assert not missing, f"{name}: {missing}"
        plain = {"LATENT,IMAGE", "COMBO", "INT", "FLOAT", "STRING", "BOOLEAN", "COMFY_DYNAMICCOMBO_V3"}
        types = {one.get_io_type() for one in kind.define_schema().inputs}
        assert types <= plain | set(carries), f"{name} has an input of a type that nobody checks: {types - plain}"


def test_what_is_a_link_passes():
    model = load()
    assert node("ChunkwiseReuse", model=model, preset=CUSTOM) is not model
    assert ours(prefix={"samples": torch.zeros(1, 16, 3, 4, 8)}) is not None


@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
def test_the_report_fails_no_run(value):
    for inputs in ({"model": value, "latent": {"samples": torch.zeros(1)}}, {"model": load(), "latent": value}):
        text = NODES["FlowCacheReport"].execute(**inputs).args[0]
        assert isinstance(text, str) and text and len(text) < 1000
