"""What the pack's panels show in the page, and what they were told, written down as it came."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

PATIENCE = 900  # seconds, for a machine with other work
RUN = 300_000  # ms, for what waits for a run
LOOK = os.environ.get("FLOWCACHE_LOOK")  # a folder for pictures of what these tests look at
RUNNING = "SamplerCustomAdvanced"
OURS = ("FlowCacheChunkwiseReuse", "FlowCacheKVCompressor", "FlowCacheARSampler", "FlowCacheReport")

# The panel on a node; null without one. colours: how many pixels of its map have which; cut: text that is not seen.
_PANEL = """kind => {
    const node = app.graph.nodes.find(n => n.type === kind);
    const widget = node?.widgets?.find(w => w.name === 'flowcache_run');
    if (!widget) return null;
    const panel = widget.flowcache, box = panel.element.getBoundingClientRect();
    const canvas = panel.canvas, colours = {};
    const pixels = canvas.width
        ? canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data : [];
    for (let i = 0; i < pixels.length; i += 4)
        if (pixels[i + 3] === 255) {
            const colour = [...pixels.slice(i, i + 3)].map(v => v.toString(16).padStart(2, '0')).join('');
            colours[colour] = (colours[colour] ?? 0) + 1;
        }
    const cut = [panel.element, ...panel.content.querySelectorAll('div')].some(
        e => e.clientHeight && (e.scrollHeight > e.clientHeight + 1 || e.scrollWidth > e.clientWidth + 1));
    return {run: panel.state.run, colours, cut, text: panel.element.innerText, headline: panel.headline.textContent,
        shown: panel.element.isConnected && box.width > 50 && box.height > 20};
}"""

# From now on every message of a run, and what the panel on the sampling node said two frames later.
_WRITE_DOWN = """kind => {
    window.told = [];
    if (window.writing) return;
    window.writing = true;
    app.api.addEventListener('flowcache.run', ({detail}) => {
        const entry = {run: detail, text: null};
        window.told.push(entry);
        requestAnimationFrame(() => requestAnimationFrame(() => {
            const node = app.graph.nodes.find(n => n.type === kind);
            const panel = node?.widgets?.find(w => w.name === 'flowcache_run')?.flowcache;
            entry.text = panel?.content.textContent ?? null;
        }));
    });
}"""


def look(page: Any, name: str) -> None:
    if LOOK:
        page.screenshot(path=str(Path(LOOK) / f"{name}-{page.renderer.replace(' ', '')}.png"))


def panel(page: Any, kind: str = RUNNING) -> dict[str, Any] | None:
    found: dict[str, Any] | None = page.evaluate(_PANEL, kind)
    return found


def panel_when(page: Any, condition: str, kind: str = RUNNING) -> dict[str, Any]:
    """When ``condition``, JavaScript on ``p``, holds of the panel on a node of ``kind``."""
    waited = f"kind => {{ const p = ({_PANEL})(kind); return p && ({condition}) ? p : null; }}"
    found: dict[str, Any] = page.wait_for_function(waited, arg=kind, polling=200, timeout=RUN).json_value()
    return found


def write_down(page: Any) -> None:
    page.evaluate(_WRITE_DOWN, RUNNING)


def told(page: Any) -> list[dict[str, Any]]:
    """``{"run": message, "text": of the panel}`` since :func:`write_down`."""
    found: list[dict[str, Any]] = page.evaluate("() => window.told")
    return found


def near(page: Any, kind: str, scale: float = 1.3) -> None:
    """The node in sight, and large enough to read."""
    page.evaluate(
        """([kind, scale]) => {
            const node = app.graph.nodes.find(n => n.type === kind), ds = app.canvas.ds;
            ds.scale = scale;
            ds.offset[0] = 300 - node.pos[0];
            ds.offset[1] = 120 - node.pos[1];
            app.canvas.setDirty(true, true);
        }""",
        [kind, scale],
    )
    page.wait_for_timeout(400)


def queue(page: Any) -> None:
    """Press Run; returns when the prompt runs."""
    page.evaluate(
        "() => { window.begun = false;"
        " app.api.addEventListener('execution_start', () => { window.begun = true; }, {once: true}); }"
    )
    page.get_by_test_id("queue-button").first.click()
    page.wait_for_function("() => window.begun", polling=100, timeout=RUN)


def idle(page: Any) -> None:
    """Wait until nothing runs and nothing waits. Asked from here: to Playwright a promise is true."""
    busy = """async () => {
        const queue = await (await fetch('/queue')).json();
        return queue.queue_running.length + queue.queue_pending.length;
    }"""
    end = time.monotonic() + PATIENCE
    while page.evaluate(busy):
        assert time.monotonic() < end, f"still running after {PATIENCE} s"
        page.wait_for_timeout(500)
    page.wait_for_timeout(500)  # what was told last has been drawn
