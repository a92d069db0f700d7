"""FlowCache Multi-GPU in the real page, as somebody uses it who has one CPU: two ranks on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from comfy_server import ComfyServer
from panels import RUNNING, idle, look, near, panel_when, queue
from test_errors import change, marked, run, said_of
from test_frontend import MINI, open_template, ours
from test_newcomer import run_to_the_end

RANKS = "FlowCacheMultiGPU"
# Between what makes the model and what it goes to: a node more.
PUT = """([kind, before, ranks]) => {
    const from = app.graph.nodes.find(n => n.type === before), node = LiteGraph.createNode(kind);
    node.pos = [from.pos[0], -500];
    node.size[0] = 400;
    app.graph.add(node);
    node.widgets.find(w => w.name === 'ranks').value = ranks;
    const slot = from.findOutputSlot('MODEL') < 0 ? 0 : from.findOutputSlot('MODEL');
    const followers = (from.outputs[slot].links ?? []).map(id => app.graph.getLink?.(id) ?? app.graph.links.get(id));
    for (const link of followers) node.connect(0, app.graph.getNodeById(link.target_id), link.target_slot);
    from.connect(slot, node, node.findInputSlot('model'));
    return followers.length;
}"""
TEXT = """kind => {
    const node = app.graph.nodes.find(n => n.type === kind);
    return (node.widgets ?? []).map(w => w.element?.textContent || w.element?.value || '').join(' ')
        + (app.nodeOutputs?.[node.id]?.text ?? []).join(' ');
}"""
VIDEO = """() => app.nodeOutputs[app.graph.nodes.find(n => n.type === 'SaveVideo').id].images[0]"""


def text_of(page: Any) -> str:
    found: str = page.evaluate(TEXT, RANKS)
    return found


def frames(page: Any, server: ComfyServer) -> np.ndarray:
    with av.open(str(server.file(page.evaluate(VIDEO)))) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]).astype(int)


def ranks_running() -> list[int]:
    """Processes of this machine that serve a run."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if b"flowcache_core.parallel.serve" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def ranks_gone(page: Any) -> bool:
    """Soon: the host has told of the end before they have got their signal."""
    for _ in range(100):
        if not ranks_running():
            return True
        page.wait_for_timeout(100)
    return False


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """PSNR, in dB."""
    return float(10 * np.log10(255**2 / max(((one - other) ** 2).mean(), 1e-9)))


def test_a_video_on_two_ranks_is_the_video(page: Any, server: ComfyServer) -> None:
    """Latents differ in a last bit, of which the file's encoder makes a little more: tests/host compares latents."""
    if page.renderer != "classic":
        pytest.skip("two ranks are the same in the other renderer")
    page.errors.clear()
    open_template(page, MINI)
    change(page, "EmptyARVideoLatent", "length", 21)
    change(page, "BasicScheduler", "steps", 12)
    change(page, "RandomNoise", "noise_seed", 300 + len(page.renderer))
    assert page.evaluate(PUT, [RANKS, "FlowCacheKVCompressor", 0]) == 3
    plain = run_to_the_end(page)
    expected = frames(page, server)
    near(page, RANKS)
    look(page, "ranks-one-device")
    assert "One device here (1 CPU): the model runs on it as without this node." in text_of(page)

    change(page, RANKS, "ranks", 2)
    queue(page)
    near(page, RUNNING)
    panel_when(page, "p.run && p.run.done > 3 && !p.run.complete")
    assert len(ranks_running()) == 2
    look(page, "ranks-running")
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Interrupt')")
    idle(page)
    assert ranks_gone(page)
    look(page, "ranks-interrupted")
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Memory.UnloadModelsAndExecutionCache')")
    page.wait_for_timeout(500)
    done = run_to_the_end(page)
    assert done["run"]["computed"] == plain["run"]["computed"]
    near(page, RANKS)
    look(page, "ranks-done")
    assert "2 ranks on the CPU, to try it: no faster." in text_of(page)
    found = frames(page, server)
    assert likeness(found, expected) > 40 > 25 > likeness(found, expected[::-1])
    assert ranks_gone(page) and ours(page.errors) == []


def test_numbers_that_do_not_fit_and_a_second_node(page: Any) -> None:
    open_template(page, MINI)
    page.evaluate(PUT, [RANKS, "FlowCacheKVCompressor", 5])
    said = said_of(page, run(page))
    look(page, "ranks-five")
    assert "FlowCache Multi-GPU, ranks: got 5, accepted: 1, 2" in said and marked(page) == [RANKS]
    change(page, RANKS, "ranks", 2)
    assert page.evaluate(PUT, [RANKS, "FlowCacheKVCompressor", 2]) == 1
    said = said_of(page, run(page))
    look(page, "ranks-twice")
    assert "FlowCache Multi-GPU" in said and marked(page) == [RANKS]
    assert ranks_running() == []
