"""Mini scenes on a real server: its graph from prompt to file, with its own preset, language and VAE."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import folder_paths
import numpy as np
import pytest
from api_copy import COPIES, read
from comfy_server import ComfyServer, ServerError, comfy_server, lay_out

HOST = Path(folder_paths.__file__).parent
GRAPH = COPIES / "flowcache_mini_text_to_video.json"
PROMPT = "a middle red circle moving right, camera panning left, by night"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("comfy")
    lay_out(base)
    with comfy_server(HOST, Path(sys.executable), base) as running:
        yield running


def graph(**changes: dict[str, Any]) -> dict[str, Any]:
    """The mini model's template for mini scenes: two chunks. changes: inputs by node class, for all nodes of it."""
    prompt: dict[str, Any] = read(GRAPH)
    inputs: dict[str, dict[str, Any]] = {
        "FlowCacheMiniModel": {"model": "scenes"},
        "FlowCacheMiniPrompt": {"model": "scenes"},
        "FlowCacheChunkwiseReuse": {"preset": "scenes: fast"},
        "FlowCacheKVCompressor": {"budget": 1, "method": "recent"},
        "EmptyARVideoLatent": {"width": 128, "height": 128, "length": 21},
    }
    for node in prompt.values():
        node["inputs"] |= inputs.get(node["class_type"], {}) | changes.get(node["class_type"], {})
    prompt["4"]["inputs"]["text"] = PROMPT
    return prompt


def test_the_video_shows_what_was_asked_for(server: ComfyServer) -> None:
    """A red circle in the middle that moves right, before a dark sky and hills."""
    outputs = server.run(graph())
    with av.open(str(server.file(outputs["16"]["images"][0]))) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)
    assert frames.shape == (21, 256, 256, 3)
    red = (frames[..., 0] > 150) & (frames[..., 1] < 110) & (frames[..., 2] < 110)
    assert 0.01 < red[0].mean() < 0.08
    places = [np.nonzero(red[time]) for time in (0, 12)]
    assert abs(places[0][0].mean() - 128) < 20  # in the middle lane
    assert places[1][1].mean() > places[0][1].mean() + 20  # 2 pixels a frame, drawn twice as large
    assert frames[:, :10].mean() < 40 and frames[:, -10:].mean() > frames[:, :10].mean() + 10  # sky and ground
    text = outputs["12"]["text"][0]
    assert re.search(r"computed \d+ of 100 ", text), text


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"FlowCacheMiniPrompt": {"model": "wan"}}, "middle"),
     ({"FlowCacheMiniModel": {"model": "landscape"}}, "landscape")],
)  # fmt: skip
def test_the_wrong_language_or_model_is_refused(server: ComfyServer, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ServerError) as refused:
        server.run(graph(**changes))
    assert named in str(refused.value)
