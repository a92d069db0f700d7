"""What a user sees of an error in the real frontend: the sentence at once, and the node that holds the field marked."""

from __future__ import annotations

from typing import Any

from geometry import overlaps, still
from panels import look, panel_when
from test_frontend import MINI, open_template

SET = """([type, name, value]) => {
    const node = app.graph.nodes.find(n => n.type === type);
    const widget = node.widgets.find(w => w.name === name);
    widget.value = value;
    return widget.value;
}"""


def change(page: Any, kind: str, field: str, value: Any) -> None:
    page.evaluate(SET, [kind, field, value])
    page.wait_for_timeout(300)


def run(page: Any) -> Any:
    """Press Run and wait for the box that says what went wrong."""
    page.get_by_test_id("queue-button").first.click()
    box = page.get_by_test_id("error-overlay")
    box.wait_for(state="visible")
    page.wait_for_timeout(700)
    return box


def said_of(page: Any, box: Any, sign: str = "accepted") -> str:
    """The sentence of an error: in the box itself or, in newer frontends, in the log that it opens, which has no more
    than the places in the source at first. sign: one of its words.
    """
    text: str = box.inner_text()
    if sign not in text:
        page.get_by_test_id("error-overlay-see-errors").click()
        logs = page.get_by_test_id("runtime-error-panel").filter(has_text="Exception Message")
        log = logs.filter(has_text=sign).first
        log.wait_for(timeout=20_000)
        text = log.inner_text()
    return text


def marked(page: Any) -> list[str]:
    """Types of the nodes that are drawn with the colour of an error."""
    return page.evaluate(
        """() => {
            const store = app.extensionManager;
            const ids = [store.lastExecutionError?.node_id, ...Object.keys(store.lastNodeErrors ?? {})].map(String);
            return app.graph.nodes.filter(n => n.has_errors || ids.includes(String(n.id))).map(n => n.type);
        }"""
    )


def test_a_field_that_fails_when_its_node_runs(page: Any) -> None:
    open_template(page, MINI)
    change(page, "FlowCacheKVCompressor", "method", "importance-redundancy")
    change(page, "FlowCacheKVCompressor", "method.pool_kernel", 4)
    text = said_of(page, run(page))
    look(page, "field")
    assert "ValueError: KV Cache Compressor, pool_kernel: got 4, accepted: an odd whole number" in text
    assert marked(page) == ["FlowCacheKVCompressor"]


def test_settings_that_do_not_fit_together_name_the_node(page: Any) -> None:
    """They meet in the sampler, which is all that the host can mark; what can be read of the sentence says where."""
    open_template(page, MINI)
    change(page, "FlowCacheChunkwiseReuse", "preset", "mini: balanced")
    change(page, "BasicScheduler", "steps", 4)
    box = run(page)
    look(page, "preset")
    in_box = "accepted" in box.inner_text()
    assert "FlowCache Chunkwise Reuse, preset mini: balanced: got '4 steps'" in said_of(page, box)
    if not in_box:  # a newer frontend
        return
    # Three lines are drawn, the rest is cut.
    shown = (
        box.get_by_test_id("error-overlay-messages")
        .locator("span")
        .last.evaluate(
            """element => {
            const node = element.firstChild, range = document.createRange();
            const end = element.getBoundingClientRect().bottom;
            let length = node.length;
            for (;; length--) {
                range.setStart(node, 0);
                range.setEnd(node, length);
                if (range.getBoundingClientRect().bottom <= end + 1) break;
            }
            return node.data.slice(0, length);
        }"""
        )
    )
    assert "accepted: a run of the model mini" in shown, shown


def test_a_choice_that_is_gone(page: Any) -> None:
    """Refused before the run: the node and its field are marked, and the list of errors says what there is."""
    open_template(page, MINI)
    change(page, "FlowCacheChunkwiseReuse", "preset", "mini: gone")
    run(page)
    assert marked(page) == ["FlowCacheChunkwiseReuse"]
    page.get_by_test_id("error-overlay-see-errors").click()
    page.wait_for_timeout(700)
    details = page.locator("p", has_text="got mini: gone, accepted: ")
    if page.get_by_test_id("errors-summary-hero").count():  # newer frontends name the field alone
        assert page.get_by_text("FlowCache Chunkwise Reuse").first.is_visible()
    else:
        text = details.first.inner_text()
        begins = "preset - got mini: gone, accepted: auto, custom, "
        assert begins in text and "mini: balanced" in text and "&" not in text
    look(page, "gone")
    # On the nodes it begins the same, and is cut: the list of all there is would cover the neighbours.
    shown = panel_when(page, "p.headline.includes('gone')", "FlowCacheChunkwiseReuse")
    assert shown["headline"].startswith("preset: got 'mini: gone', accepted: auto, custom, ")
    assert len(shown["headline"]) <= 145 and not shown["cut"]
    assert overlaps(still(page)) == []


def test_a_wrong_choice_of_an_optional_list_marks_its_own_field(page: Any) -> None:
    open_template(page, MINI)
    change(page, "FlowCacheKVCompressor", "preset", "gone")
    run(page)
    look(page, "optional")
    assert marked(page) == ["FlowCacheKVCompressor"]
    (found,) = page.evaluate("() => Object.values(app.extensionManager.lastNodeErrors)")
    assert [error["extra_info"]["input_name"] for error in found["errors"]] == ["preset"]
    assert found["errors"][0]["details"].startswith("preset - got gone, accepted: custom, auto (MB), ")


def test_where_the_help_page_is(page: Any) -> None:
    """As the notes in the templates say: the i above a selected node."""
    open_template(page, MINI)
    note = page.evaluate("() => app.graph.nodes.find(n => n.type === 'MarkdownNote').widgets[0].value")
    assert "Select a node and click the **i** in the bar above it" in note
    page.evaluate("() => app.canvas.selectNode(app.graph.nodes.find(n => n.type === 'FlowCacheReport'))")
    page.get_by_test_id("info-button").click()
    page.get_by_role("heading", name="When it cannot").wait_for()
    look(page, "help")
