"""The map of a run grows on the node that samples, in the real frontend and both of its renderers."""

from __future__ import annotations

import os
from typing import Any

import pytest
from comfy_server import ComfyServer
from test_errors import change, look
from test_frontend import MINI, open_template, ours

# Passed on a slow machine; on a quick one the first wait has hung, and each would hold the suite for five minutes.
pytestmark = pytest.mark.skipif("FLOWCACHE_LIVE_MAP" not in os.environ, reason="set FLOWCACHE_LIVE_MAP=1")

RUNNING = "SamplerCustomAdvanced"
# What the panel on the sampling node shows; null without one. Pixels: how many differ from the background of the map.
PANEL = """kind => {
    const node = app.graph.nodes.find(n => n.type === kind);
    const widget = node.widgets?.find(w => w.name === 'flowcache_run');
    if (!widget) return null;
    const view = widget.flowcache, run = view.run, box = view.element.getBoundingClientRect();
    const canvas = view.canvas, pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    const colours = {};
    for (let i = 0; i < pixels.length; i += 4)
        if (pixels[i + 3] === 255) {
            const colour = [...pixels.slice(i, i + 3)].map(v => v.toString(16).padStart(2, '0')).join('');
            colours[colour] = (colours[colour] ?? 0) + 1;
        }
    const shown = view.element.isConnected && box.width > 50 && box.height > 50;
    return {run, colours, shown, text: view.element.innerText,
        cut: view.element.scrollHeight > view.element.clientHeight + 1, count: node.widgets.length};
}"""
STARTED = f"kind => {{ const p = ({PANEL})(kind); return p?.run.done > 3 && !p.run.complete ? p : null; }}"
COMPLETE = f"kind => {{ const panel = ({PANEL})(kind); return panel?.run.complete ? panel : null; }}"
COMPUTED, REUSED = "0072b2", "f5c77e"


def start(page: Any, seed: int, length: int = 93) -> None:
    """The mini template with a seed of its own, and a video long enough to be watched."""
    open_template(page, MINI)
    change(page, "RandomNoise", "noise_seed", seed + len(page.renderer))
    change(page, "EmptyARVideoLatent", "length", length)
    page.get_by_test_id("queue-button").first.click()


def near(page: Any, name: str) -> None:
    """A picture with the sampling node in the middle, large enough to read."""
    page.evaluate(
        """kind => {
            const node = app.graph.nodes.find(n => n.type === kind), ds = app.canvas.ds;
            ds.scale = 1.5;
            ds.offset[0] = 500 - node.pos[0];
            ds.offset[1] = 120 - node.pos[1];
            app.canvas.setDirty(true, true);
        }""",
        RUNNING,
    )
    page.wait_for_timeout(1000)
    look(page, name)


def panel_when(page: Any, condition: str) -> dict[str, Any]:
    return page.wait_for_function(condition, arg=RUNNING, polling=100).json_value()


def idle(page: Any, server: ComfyServer) -> None:
    page.wait_for_function(
        "async () => { const q = await (await fetch('/queue')).json();"
        " return !q.queue_running.length && !q.queue_pending.length; }",
        polling=500,
    )


def test_it_grows_and_stays(page: Any, server: ComfyServer) -> None:
    page.errors.clear()
    start(page, 100)
    seen = panel_when(page, STARTED)
    near(page, "live-map-running")
    assert seen["shown"] and not seen["cut"], seen
    assert seen["run"]["now"] and "left" in seen["text"] and "K/V" in seen["text"], seen["text"]
    later = page.wait_for_function(
        f"([kind, done]) => {{ const panel = ({PANEL})(kind); return panel.run.done > done ? panel : null; }}",
        arg=[RUNNING, seen["run"]["done"]],
    ).json_value()
    pending = [sum(row.count(" ") for row in one["run"]["rows"]) for one in (seen, later)]
    assert pending[1] < pending[0]
    ended = panel_when(page, COMPLETE)
    idle(page, server)
    page.wait_for_timeout(1500)
    near(page, "live-map-ended")
    assert ended["run"]["rows"][0].count(".") < ended["run"]["rows"][1].count(".")
    assert ended["colours"][COMPUTED] > 100 and ended["colours"][REUSED] > 100, ended["colours"]
    assert "saved" in ended["text"] and "dB" in ended["text"], ended["text"]
    still = page.evaluate(PANEL, RUNNING)
    assert still["run"]["complete"] and still["shown"] and not still["cut"]
    assert ours(page.errors) == []


def test_a_workflow_that_is_opened_again_still_shows_it(page: Any) -> None:
    """After the test above: its run is complete, the graph is loaded anew."""
    page.evaluate("async () => await app.loadGraphData(app.rootGraph.serialize())")
    page.wait_for_timeout(1500)
    panel = page.evaluate(PANEL, RUNNING)
    assert panel and panel["run"]["complete"] and panel["shown"]
    saved = page.evaluate("() => JSON.stringify(app.rootGraph.serialize())")
    assert "flowcache_run" not in saved


def test_it_survives_a_reload_in_the_middle(page: Any, server: ComfyServer) -> None:
    page.errors.clear()
    start(page, 200)
    before = panel_when(page, STARTED)["run"]["done"]
    page.reload(wait_until="commit")
    page.wait_for_function("window.app?.extensionManager && window.app?.rootGraph?.nodes?.length > 4")
    after = panel_when(page, f"kind => ({PANEL})(kind)")
    near(page, "live-map-reloaded")
    assert after["run"]["done"] >= before
    ended = panel_when(page, COMPLETE)
    assert ended["run"]["done"] == ended["run"]["total"]
    idle(page, server)
    page.reload(wait_until="commit")
    page.wait_for_function("window.app?.extensionManager && window.app?.rootGraph?.nodes?.length > 4")
    assert panel_when(page, COMPLETE)["run"]["complete"]


def test_nothing_is_left_of_a_run_that_was_interrupted(page: Any, server: ComfyServer) -> None:
    page.errors.clear()
    start(page, 300)
    panel_when(page, STARTED)
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Interrupt')")
    idle(page, server)
    page.wait_for_function(f"kind => ({PANEL})(kind) === null", arg=RUNNING)
    near(page, "live-map-interrupted")
    client = page.evaluate("() => sessionStorage.getItem('clientId')")
    assert [run for run in server.get(f"/flowcache/runs?client={client}") if not run["complete"]] == []


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_both_themes(page: Any, theme: str) -> None:
    page.evaluate("theme => app.extensionManager.setting.set('Comfy.ColorPalette', theme)", theme)
    start(page, 400 + len(theme), length=33)
    panel = panel_when(page, COMPLETE)
    page.wait_for_timeout(1000)
    near(page, f"live-map-{theme}")
    assert panel["colours"][COMPUTED] > 100
    page.evaluate("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
