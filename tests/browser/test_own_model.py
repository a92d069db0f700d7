"""A user's own model in the page: presets travel with the workflow, and a comparison runs its rival."""

from __future__ import annotations

import json
from typing import Any

from comfy_server import ComfyServer
from panels import RUN, idle, look, queue
from test_errors import change, marked, run, said_of
from test_frontend import MINI, open_template, ours

LISTS = json.dumps(
    {
        "schema": 1,
        "presets": {
            "gone": {
                "text": "Of another machine.",
                "policy": {"name": "schedule", "computed": [0, 4, 7], "first": [0, 1, 2, 4, 7]},
                "quantity": "forecast",
                "requires": {"steps": 8, "shift": 3.0},
            }
        },
    }
)
SHORT = """() => {
    const set = (kind, name, value) => {
        for (const node of app.graph.nodes.filter(n => n.type === kind)) {
            const widget = node.widgets.find(w => w.name === name);
            widget.value = value;
            widget.callback?.(value);
        }
    };
    set('BasicScheduler', 'steps', 10);
    set('EmptyARVideoLatent', 'length', 21);
    set('FlowCacheChunkwiseReuse', 'preset', 'auto');
}"""
COMPARE = """() => {
    const graph = app.graph;
    const samplings = graph.nodes.filter(n => n.type === 'SamplerCustomAdvanced');
    const reuses = node => node.type === 'FlowCacheChunkwiseReuse' || (node.inputs ?? []).some(i => {
        const link = graph.links.get ? graph.links.get(i.link) : graph.links[i.link];
        return link && reuses(graph.getNodeById(link.origin_id));
    });
    const result = samplings.find(reuses), reference = samplings.find(n => !reuses(n));
    let node = graph.nodes.find(n => n.type === 'FlowCacheCompare');
    if (!node) {
        node = LiteGraph.createNode('FlowCacheCompare');
        node.pos = [100, 1400];
        graph.add(node);
        const loader = graph.nodes.find(n => n.type === 'FlowCacheMiniModel');
        const model = graph.nodes.find(n => n.type === 'FlowCacheKVCompressor');
        const at = name => node.inputs.findIndex(i => i.name === name);
        reference.connect(0, node, at('reference'));
        result.connect(0, node, at('result'));
        loader.connect(1, node, at('vae'));
        loader.connect(0, node, at('model_reference'));
        model.connect(0, node, at('model_result'));
    }
    return node.id;
}"""
RIVAL = """id => {
    const graph = app.graph, node = graph.getNodeById(id);
    const of = (node, name) => {
        const link = node.inputs.find(i => i.name === name)?.link;
        const found = graph.links.get ? graph.links.get(link) : graph.links[link];
        return found && graph.getNodeById(found.origin_id);
    };
    const sampling = of(node, 'result');
    return {
        steps: of(sampling, 'sigmas').widgets.find(w => w.name === 'steps').value,
        reference: of(node, 'reference').id,
        noise: of(sampling, 'noise').id,
        prefix: of(of(sampling, 'guider'), 'model').type,
        loader: of(of(of(sampling, 'guider'), 'model'), 'model')?.type ?? null,
    };
}"""


def test_the_slider_and_the_rival_of_a_comparison(page: Any) -> None:
    page.errors.clear()
    open_template(page, "flowcache_mini_compare")
    page.evaluate(SHORT)
    compare = page.evaluate(COMPARE)
    before = page.evaluate("() => app.graph.nodes.length")
    page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait_for_function(
        "id => app.graph.getNodeById(id).widgets?.some(w => w.name === 'flowcache_rival')",
        arg=compare,
        polling=500,
        timeout=RUN,
    )
    page.wait_for_function(
        """() => [...document.querySelectorAll('.flowcache-slider img')].length === 2
            && [...document.querySelectorAll('.flowcache-slider img')].every(i => i.naturalWidth > 10)""",
        polling=500,
        timeout=RUN,
    )
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(1500)
    look(page, "compare")
    page.evaluate("id => app.graph.getNodeById(id).widgets.find(w => w.name === 'flowcache_rival').callback()", compare)
    rival = page.evaluate(
        "old => app.graph.nodes.filter(n => n.type === 'FlowCacheCompare' && n.id !== old).map(n => n.id)", compare
    )
    assert len(rival) == 1
    made, first = page.evaluate(RIVAL, rival[0]), page.evaluate(RIVAL, compare)
    assert first["steps"] == 10 and 1 <= made["steps"] < 10
    assert made["noise"] == first["noise"] and made["reference"] == first["reference"]
    assert "FlowCacheChunkwiseReuse" not in (made["prefix"], made["loader"])
    assert page.evaluate("() => app.graph.nodes.length") > before
    page.wait_for_function("id => app.nodeOutputs?.[id]?.text?.length", arg=rival[0], polling=500, timeout=RUN)
    text = "\n".join(page.evaluate("id => app.nodeOutputs[id].text", rival[0]))
    assert "These are plain steps" in text and "different noise" not in text
    assert ours(page.errors) == []


def test_a_preset_that_is_not_here_is_taken_from_the_workflow(page: Any) -> None:
    page.errors.clear()
    open_template(page, MINI)
    saved = json.loads(page.evaluate("() => JSON.stringify(app.graph.serialize())"))  # as a file: nothing undefined
    (node,) = [one for one in saved["nodes"] if one["type"] == "FlowCacheChunkwiseReuse"]
    node["widgets_values"] = ["my: gone", LISTS]
    page.evaluate("graph => app.loadGraphData(graph, true, true, null)", saved)
    page.wait_for_timeout(1000)
    posted = page.evaluate("async () => (await app.graphToPrompt()).output")
    (inputs,) = [one["inputs"] for one in posted.values() if one["class_type"] == "FlowCacheChunkwiseReuse"]
    assert inputs["preset"] == "held in this workflow" and json.loads(inputs["preset.lists"]) == json.loads(LISTS)
    assert ours(page.errors) == []


def test_what_a_preset_was_linked_to_is_saved_with_the_workflow(page: Any) -> None:
    """One preset node makes what the other is linked to, as FlowCache Calibrate would."""
    page.errors.clear()
    page.evaluate("() => app.graph.clear()")
    ids = page.evaluate(
        """lists => {
            const make = (x) => {
                const node = LiteGraph.createNode('FlowCachePreset');
                node.pos = [x, 200];
                app.graph.add(node);
                return node;
            };
            const [from, to] = [make(100), make(700)];
            const widget = from.widgets.find(w => w.name === 'lists');
            widget.value = lists;
            from.connect(0, to, to.inputs.findIndex(i => i.name === 'preset'));
            return [from.id, to.id];
        }""",
        LISTS,
    )
    page.evaluate("() => app.queuePrompt(0, 1)")
    held = "id => app.graph.getNodeById(id).widgets.find(w => w.name === 'lists').value"
    page.wait_for_function(f"id => ({held})(id).includes('gone')", arg=ids[1], polling=300, timeout=RUN)
    saved = page.evaluate("() => JSON.stringify(app.graph.serialize())")
    (node,) = [one for one in json.loads(saved)["nodes"] if str(one["id"]) == str(ids[1])]
    assert any(isinstance(value, str) and '"gone"' in value for value in node["widgets_values"])
    assert ours(page.errors) == []


# Opened as a workflow of its own: newer frontends show errors of the workflow that is open.
ALONE = """async () => {
    await app.loadGraphData({last_node_id: 0, last_link_id: 0, nodes: [], links: [], version: 0.4}, true, true, null);
    const node = LiteGraph.createNode('FlowCachePreset');
    node.pos = [300, 200];
    app.graph.add(node);
}"""


def refused(page: Any) -> str:
    """What the box says after Run; the box is closed again."""
    box = run(page)
    text = said_of(page, box)
    if box.is_visible():
        page.get_by_test_id("error-overlay-dismiss").or_(box.get_by_role("button", name="Dismiss")).first.click()
    box.wait_for(state="hidden")
    return text


def test_a_preset_that_cannot_be_used_is_refused_and_one_that_can_is_saved_and_loaded(
    page: Any, server: ComfyServer
) -> None:
    folder = server.base / "user" / "default" / "flowcache" / "presets"
    name = f"kept-{len(page.renderer)}"
    page.evaluate(ALONE)
    change(page, "FlowCachePreset", "save", True)
    change(page, "FlowCachePreset", "name", name)
    for lists, said in (
        ("{", "FlowCache Preset, lists"),
        (LISTS.replace('"schema": 1', '"schema": 2'), "FlowCache Preset, lists: schema: got 2, accepted: 1"),
        (LISTS.replace("[0, 4, 7]", "[0, 4, 99]"), "computed_steps"),
    ):
        change(page, "FlowCachePreset", "lists", lists)
        text = refused(page)
        assert said in text and "accepted" in text, text
        assert marked(page) == ["FlowCachePreset"]
        assert not folder.exists() or not [*folder.glob(f"*{name}*")]  # nothing, and nothing by half
    page.errors.clear()
    change(page, "FlowCachePreset", "lists", LISTS)
    queue(page)
    idle(page)
    assert [path.name for path in folder.iterdir() if name in path.name] == [f"{name}.json"]
    page.evaluate("async () => await app.refreshComboInNodes()")
    page.evaluate(ALONE)
    change(page, "FlowCachePreset", "file", name)
    queue(page)
    idle(page)
    text = page.evaluate("() => Object.values(app.nodeOutputs).flatMap(one => one.text ?? []).join()")
    assert f"{name}, from your folder" in text, text
    look(page, "preset-loaded")
    # Its lists are for 8 steps: the run of 50 says so, on the node that holds them.
    open_template(page, MINI)
    change(page, "FlowCacheChunkwiseReuse", "preset", "held in this workflow")
    change(page, "FlowCacheChunkwiseReuse", "preset.lists", LISTS)
    text = refused(page)
    assert "FlowCache Chunkwise Reuse, preset gone: got '50 steps" in text, text
    assert ours(page.errors) == []
