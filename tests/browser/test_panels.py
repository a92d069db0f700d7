"""The panels on the pack's nodes: before a run, after it, in both languages, at any width."""

from __future__ import annotations

from typing import Any

from panels import OURS, RUNNING, idle, look, near, panel, panel_when, queue
from test_errors import change, run, said_of
from test_frontend import MINI, open_template, ours

SHAPES = """async () => {
    const {LANGUAGES} = await import('/extensions/flowcache/panel/words.js');
    const shape = table => Object.entries(table).map(([key, value]) => typeof value === 'object'
        ? {[key]: shape(value)} : [key, typeof value, typeof value === 'function' ? value.length : 0]);
    return Object.values(LANGUAGES).map(table => JSON.stringify(shape(table)));
}"""

FOLD = """([kind, open]) => app.graph.nodes.find(n => n.type === kind).widgets
    .find(w => w.name === 'flowcache_run').flowcache.folding.open = open"""


def locale(page: Any, name: str) -> None:
    page.evaluate("name => app.extensionManager.setting.set('Comfy.Locale', name)", name)
    page.wait_for_timeout(500)


def notice(page: Any) -> None:
    """Values set by a script: the frontend looks for changes, as it does after a click."""
    page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.checkState?.()")
    page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState?.()")


def test_no_key_is_missing_in_either_language(page: Any) -> None:
    first, *others = page.evaluate(SHAPES)
    assert "legend" in first
    assert others and all(other == first for other in others)


def test_what_a_run_will_cost_then_what_it_did(page: Any) -> None:
    page.errors.clear()
    open_template(page, MINI)
    change(page, "EmptyARVideoLatent", "length", 45)
    change(page, "RandomNoise", "noise_seed", 500 + len(page.renderer))
    change(page, "BasicScheduler", "steps", 4)
    notice(page)
    panel_when(page, "p.headline.startsWith('nothing to reuse at 4 steps') && !p.cut", "FlowCacheChunkwiseReuse")
    look(page, "panel-few-steps")
    change(page, "BasicScheduler", "steps", 50)
    notice(page)
    panel_when(page, "p.headline.includes('of 200 steps')", "FlowCacheChunkwiseReuse")
    foretold = {}
    for kind in OURS:
        near(page, kind)
        foretold[kind] = panel_when(page, "p.shown && !p.cut && p.headline", kind)["headline"]
        look(page, f"panel-before-{kind}")
    assert foretold["FlowCacheKVCompressor"].startswith("K/V ") and foretold["FlowCacheKVCompressor"].endswith("MB")
    assert "at the peak" in foretold["FlowCacheARSampler"]
    queue(page)
    idle(page)
    page.wait_for_timeout(1000)
    for kind in OURS:
        near(page, kind)
        found = panel_when(page, "p.run?.complete && p.shown && !p.cut", kind)
        look(page, f"panel-after-{kind}")
        if kind == "FlowCacheKVCompressor":
            assert found["headline"] == foretold[kind]
        else:
            assert "saved about" in found["headline"], found
    # Another node of the graph changes: the next run will differ, and that is said beside what the last one did.
    change(page, "EmptyARVideoLatent", "length", 69)
    notice(page)
    found = panel_when(page, "p.text.includes('next run')", "FlowCacheChunkwiseReuse")
    assert "of 300 steps" in found["text"] and "saved about" in found["headline"]
    assert ours(page.errors) == []


def test_nothing_of_it_is_queued_or_saved(page: Any) -> None:
    """After the test above: panels are there."""
    assert panel(page, "FlowCacheReport") is not None
    queued = page.evaluate("async () => JSON.stringify((await app.graphToPrompt()).output)")
    saved = page.evaluate("() => JSON.stringify(app.rootGraph.serialize())")
    assert "flowcache_run" not in queued + saved and "saved about" not in queued + saved


def test_details_unfold_and_the_node_follows(page: Any) -> None:
    kind = "FlowCacheARSampler"
    size = "kind => app.graph.nodes.find(n => n.type === kind).size[1]"
    near(page, kind)
    page.locator(".flowcache-panel details:visible").first.wait_for()
    before = page.evaluate(size, kind)
    page.evaluate(FOLD, [kind, True])
    opened = panel_when(page, "p.text.includes('activations') && !p.cut", kind)
    page.wait_for_timeout(500)
    look(page, "panel-unfolded")
    assert "weights" in opened["text"] and page.evaluate(size, kind) > before + 30
    page.evaluate(FOLD, [kind, False])
    page.wait_for_timeout(700)
    assert abs(page.evaluate(size, kind) - before) <= 2


def test_no_text_is_cut_when_a_node_is_narrow(page: Any) -> None:
    kind = "FlowCacheARSampler"
    wide = page.evaluate("kind => [...app.graph.nodes.find(n => n.type === kind).size]", kind)
    set_width = """([kind, width]) => {
        const node = app.graph.nodes.find(n => n.type === kind);
        node.setSize([width, node.size[1]]);
        app.canvas.setDirty(true, true);
    }"""
    page.evaluate(set_width, [kind, 225])
    page.wait_for_timeout(800)
    near(page, kind)
    panel_when(page, "p.shown && !p.cut", kind)
    look(page, "panel-narrow")
    page.evaluate(set_width, [kind, wide[0]])


def test_chinese(page: Any) -> None:
    locale(page, "zh")
    try:
        open_template(page, MINI)
        near(page, RUNNING)
        for kind in OURS:
            text = panel_when(page, "/[\\u4e00-\\u9fff]/.test(p.headline + p.text)", kind)["text"]
            assert "steps" not in text and "saved" not in text, text
        look(page, "panel-chinese")
        note = page.evaluate("() => app.graph.nodes.find(n => n.type === 'MarkdownNote').widgets[0].value")
        assert any("\u4e00" <= sign <= "\u9fff" for sign in note)
        titles = (
            "() => [...app.graph.groups, ...app.graph.nodes.filter(n => n.type === 'MarkdownNote')].map(g => g.title)"
        )
        assert all(any("\u4e00" <= sign <= "\u9fff" for sign in title) for title in page.evaluate(titles))
        change(page, "FlowCacheKVCompressor", "preset", "auto (MB)")  # what is chosen for as much memory
        notice(page)
        page.evaluate(FOLD, ["FlowCacheKVCompressor", True])
        text = panel_when(page, "p.text.includes(' plain')", "FlowCacheKVCompressor")["text"]
        assert "\u5168\u90e8\u5386\u53f2\uff0c\u5b58\u50a8 plain" in text and "storage" not in text, text
        look(page, "panel-chinese-auto-mb")
        page.evaluate(FOLD, ["FlowCacheKVCompressor", False])
        change(page, "FlowCacheKVCompressor", "preset", "custom")
        change(page, "BasicScheduler", "steps", 4)
        notice(page)
        panel_when(page, "p.headline.startsWith('4 \u6b65\u65f6')", "FlowCacheChunkwiseReuse")
        look(page, "panel-chinese-few-steps")
        change(page, "FlowCacheKVCompressor", "method", "importance-redundancy")
        change(page, "FlowCacheKVCompressor", "method.pool_kernel", 4)
        text = said_of(page, run(page), "\u53ef\u7528")
        look(page, "error-chinese")
        assert "KV \u7f13\u5b58\u538b\u7f29" in text and "\u6536\u5230 4\uff0c\u53ef\u7528\uff1a\u5947\u6570" in text, (
            text
        )
    finally:
        locale(page, "en")
