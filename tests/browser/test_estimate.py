"""What a run will cost stands on the nodes before anything has run, follows a change, and comes back with a graph."""

from __future__ import annotations

from typing import Any

from test_frontend import MINI, open_template, ours

KINDS = ["FlowCacheARSampler", "FlowCacheChunkwiseReuse", "FlowCacheKVCompressor"]
TEXTS = """kinds => Object.fromEntries(app.graph.nodes.filter(n => kinds.includes(n.type)).map(n => [n.type,
    (n.widgets ?? []).map(w => `${w.value ?? ''}`).filter(t => /FLOPs|K\\/V |known when/.test(t)).join(' ')]))"""
SHOWN = f"kinds => {{ const found = ({TEXTS})(kinds); return Object.values(found).every(Boolean) && found; }}"
CHANGE = """([kind, name, value]) => {
    const widget = app.graph.nodes.find(n => n.type === kind).widgets.find(w => w.name === name);
    widget.value = value;
    widget.callback?.(value);
    app.extensionManager.workflow.activeWorkflow.changeTracker.checkState?.();
    app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState?.();
}"""


def test_the_cost_is_said_before_the_run_and_follows_the_graph(page: Any) -> None:
    page.errors.clear()
    open_template(page, MINI)
    first = page.wait_for_function(SHOWN, arg=KINDS, polling=200).json_value()
    assert "of 400 chunk steps computed" in first["FlowCacheARSampler"]
    assert "at its peak" in first["FlowCacheARSampler"]
    assert "instead of" in first["FlowCacheKVCompressor"]
    page.evaluate(CHANGE, ["EmptyARVideoLatent", "length", 45])
    page.wait_for_function(
        f"kinds => (({TEXTS})(kinds)['FlowCacheARSampler']).includes('of 200 chunk steps')", arg=KINDS, polling=200
    )
    # Nothing of it is in what is queued or saved.
    queued = page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)")
    assert "FLOPs" not in queued
    open_template(page, MINI)
    again = page.wait_for_function(SHOWN, arg=KINDS, polling=200).json_value()
    assert again == first
    assert ours(page.errors) == []
