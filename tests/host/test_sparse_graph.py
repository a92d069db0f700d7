"""FlowCache Sparse Attention in a graph on a real server: the mini template with calibrated heads, report and all."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from comfy_server import ComfyServer, comfy_server, lay_out
from PIL import Image
from test_templates import HOST

API = Path(__file__).parent / "api" / "flowcache_mini_text_to_video.json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("comfy")
    lay_out(base)
    with comfy_server(HOST, Path(sys.executable), base) as running:
        yield running


def prompt(density: float, length: int = 57) -> dict:
    graph = json.loads(API.read_text(encoding="utf-8"))
    inputs = {"preset": "mini: per-head", "preset.density": density, "dense_chunks": 2, "dense_steps": 0}
    inputs |= {"engine": "auto", "mask_reuse": True, "drift": 0.2, "max_age": 8, "across_chunks": False}
    graph["20"] = {"class_type": "FlowCacheSparseAttention", "inputs": {"model": ["3", 0], **inputs}}
    for node in ("6", "9", "12"):
        graph[node]["inputs"]["model"] = ["20", 0]
    graph["9"]["inputs"]["steps"] = 50
    graph["10"]["inputs"]["length"] = length
    return graph


def test_the_template_runs_with_it_and_the_report_says_how_much(server: ComfyServer) -> None:
    outputs = server.run(prompt(0.6))
    shown = "\n".join(text for output in outputs.values() for text in output.get("text", ()))
    assert "density 0.6 of the whole run" in shown and "not measured" in shown  # on the node, before the run
    assert "self-attention: " in shown and "sparse in" in shown and "served again" in shown  # in the report
    (picture,) = outputs["12"]["images"]
    assert server.file(picture).stat().st_size > 10_000
    assert server.file(outputs["16"]["images"][0]).stat().st_size > 1_000
    with Image.open(server.file(picture)) as image:  # map, strip of heads and K/V plot
        assert image.width == 960 and image.height > 450


def test_a_density_that_the_first_chunks_exceed_alone_is_an_error_on_the_node(server: ComfyServer) -> None:
    with pytest.raises(Exception, match="FlowCache Sparse Attention, density"):
        server.run(prompt(0.15, length=33))
