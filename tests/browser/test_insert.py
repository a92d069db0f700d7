"""FlowCache put before a sampler: from the sampler's menu, undone in one step, and as a subgraph of the library."""

from __future__ import annotations

from typing import Any

import pytest
from panels import idle, look, near, queue
from test_errors import change
from test_frontend import MINI, open_template, ours

PARTS = ["FlowCacheChunkwiseReuse", "FlowCacheKVCompressor"]
ENTRY = "Insert FlowCache before the sampler"
# Both nodes taken away, the guider fed by the model itself: as a graph of somebody who has not met them.
BARE = """() => {
    const node = kind => app.graph.nodes.find(n => n.type === kind), model = node('FlowCacheMiniModel');
    for (const kind of ['FlowCacheChunkwiseReuse', 'FlowCacheKVCompressor', 'FlowCacheReport'])
        app.graph.remove(node(kind));
    for (const kind of ['CFGGuider', 'BasicScheduler'])
        model.connect(model.findOutputSlot('MODEL'), node(kind), node(kind).findInputSlot('model'));
    app.extensionManager.workflow.activeWorkflow.changeTracker.checkState?.();
    app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState?.();
}"""
CHAIN = """() => {
    const chain = [];
    let node = app.graph.nodes.find(n => n.type === 'CFGGuider');
    while (node) {
        chain.push(node.type);
        node = node.getInputNode(node.findInputSlot('model'));
    }
    return chain;
}"""
ENTRIES = """kind => app.collectNodeMenuItems(app.graph.nodes.find(n => n.type === kind)).map(i => i?.content)"""
CHOOSE = """([kind, entry]) => app.collectNodeMenuItems(app.graph.nodes.find(n => n.type === kind))
    .find(i => i?.content === entry).callback()"""
BARE_CHAIN = ["CFGGuider", "FlowCacheMiniModel"]
WHOLE_CHAIN = ["CFGGuider", *reversed(PARTS), "FlowCacheMiniModel"]


def open_bare(page: Any) -> None:
    open_template(page, MINI)
    page.evaluate(BARE)
    page.wait_for_timeout(500)
    assert page.evaluate(CHAIN) == BARE_CHAIN


@pytest.mark.parametrize("kind", ["FlowCacheARSampler", "SamplerCustomAdvanced"])
def test_it_is_inserted_once_and_undone_in_one_step(page: Any, kind: str) -> None:
    page.errors.clear()
    open_bare(page)
    near(page, kind)
    page.evaluate(CHOOSE, [kind, ENTRY])
    page.wait_for_timeout(700)
    assert page.evaluate(CHAIN) == WHOLE_CHAIN
    assert ENTRY not in page.evaluate(ENTRIES, kind)
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Undo')")
    page.wait_for_function(f"() => JSON.stringify(({CHAIN})()) === '{_json(BARE_CHAIN)}'")
    assert ENTRY in page.evaluate(ENTRIES, kind)
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Redo')")
    page.wait_for_function(f"() => JSON.stringify(({CHAIN})()) === '{_json(WHOLE_CHAIN)}'")
    assert ours(page.errors) == []


def _json(chain: list[str]) -> str:
    return "[" + ",".join(f'"{kind}"' for kind in chain) + "]"


def test_the_entry_is_in_the_menu_that_a_right_click_opens(page: Any) -> None:
    open_bare(page)
    kind = "FlowCacheARSampler"
    near(page, kind, 1.0)
    x, y = page.evaluate(
        """kind => {
            const node = app.graph.nodes.find(n => n.type === kind), ds = app.canvas.ds;
            const box = app.canvas.canvas.getBoundingClientRect();
            return [box.left + (node.pos[0] + ds.offset[0] + 90) * ds.scale,
                box.top + (node.pos[1] + ds.offset[1] - 15) * ds.scale];
        }""",
        kind,
    )
    page.mouse.click(x, y, button="right")
    page.wait_for_timeout(800)
    if not page.get_by_text(ENTRY).first.is_visible():  # some frontends keep what extensions add in a submenu
        page.get_by_text("Extensions", exact=False).first.hover()
    page.get_by_text(ENTRY).first.wait_for(state="visible", timeout=10_000)
    look(page, "insert-menu")
    page.get_by_text(ENTRY).first.click()
    page.wait_for_function(f"() => JSON.stringify(({CHAIN})()) === '{_json(WHOLE_CHAIN)}'")
    page.wait_for_timeout(500)
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(1000)
    look(page, "inserted")


def test_other_nodes_have_no_such_entry(page: Any) -> None:
    open_bare(page)
    for kind in ("FlowCacheMiniModel", "CFGGuider", "SaveVideo", "BasicScheduler"):
        assert ENTRY not in page.evaluate(ENTRIES, kind)


def test_the_subgraph_is_in_the_library_and_runs(page: Any) -> None:
    page.errors.clear()
    open_bare(page)
    added = page.evaluate(
        """async () => {
            const known = await (await fetch('/api/global_subgraphs')).json();
            const [id] = Object.entries(known).find(([, entry]) => entry.info.node_pack.endsWith('flowcache'));
            const file = JSON.parse((await (await fetch(`/api/global_subgraphs/${id}`)).json()).data);
            const bare = app.rootGraph.serialize();
            const node = {...file.nodes[0], id: 900, pos: [500, -300]};
            const subgraphs = [...bare.definitions.subgraphs, ...file.definitions.subgraphs];
            await app.loadGraphData({...bare, nodes: [...bare.nodes, node], last_node_id: 900,
                definitions: {...bare.definitions, subgraphs}});
            const put = app.graph.getNodeById(900), model = app.graph.nodes.find(n => n.type === 'FlowCacheMiniModel');
            const guider = app.graph.nodes.find(n => n.type === 'CFGGuider');
            model.connect(model.findOutputSlot('MODEL'), put, 0);
            put.connect(0, guider, guider.findInputSlot('model'));
            const stores = document.querySelector('#vue-app').__vue_app__.config.globalProperties.$pinia._s;
            const known_here = stores.get('subgraph')?.subgraphBlueprints;  // not told by every frontend
            const titles = known_here?.map(entry => entry.display_name) ?? ['FlowCache for AR video'];
            return {widgets: put.widgets.map(w => w.name),
                listed: titles.filter(title => title === 'FlowCache for AR video').length};
        }"""
    )
    assert added["listed"] == 1
    assert any("budget" in name for name in added["widgets"]), added
    page.wait_for_timeout(1500)
    near(page, "CFGGuider", 0.7)
    look(page, "subgraph")
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    kinds = {node["class_type"]: key for key, node in prompt.items()}
    assert set(PARTS) <= set(kinds) and kinds[PARTS[0]].startswith("900:")
    page.evaluate("() => { app.graph.nodes.find(n => n.type === 'EmptyARVideoLatent').widgets[2].value = 21; }")
    # A seed of its own: what the other renderer has run is in the server's cache, and tells nobody anything.
    change(page, "RandomNoise", "noise_seed", 700 + len(page.renderer))
    queue(page)
    idle(page)
    assert page.evaluate("() => app.extensionManager.lastExecutionError ?? null") is None
    inner = page.evaluate(
        """() => app.graph.getNodeById(900).subgraph.nodes.map(n =>
            n.widgets?.find(w => w.name === 'flowcache_run')?.flowcache.state.run?.complete ?? false)"""
    )
    assert inner == [True, True]
    assert ours(page.errors) == []
