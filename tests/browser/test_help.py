"""Help pages in the frontend's help panel, as wide as it opens: nothing of them is cut or needs scrolling sideways."""

from __future__ import annotations

from typing import Any

from panels import look

HELP = ".node-help-content"
KINDS = "() => Object.keys(LiteGraph.registered_node_types).filter(kind => kind.startsWith('FlowCache')).sort()"
ONE = """kind => {
    app.graph.clear();
    const node = LiteGraph.createNode(kind);
    app.graph.add(node);
    app.canvas.selectNode(node);
    return node.title;
}"""
# What sticks out of the page's column on the right, or is cut there, as text.
WIDE = """element => {
    const box = element.getBoundingClientRect(), found = [];
    for (const one of element.querySelectorAll('*')) {
        const right = one.getBoundingClientRect().right;
        const cut = one.clientWidth && one.scrollWidth > one.clientWidth + 1;
        if (right > box.right + 1 || cut) found.push(`${one.tagName}: ${one.textContent.trim().slice(0, 60)}`);
    }
    return {width: box.width, found};
}"""


def test_every_help_page_fits_the_panel(page: Any) -> None:
    """In one renderer: the panel is the same in both."""
    if page.renderer != "classic":
        return
    kinds = page.evaluate(KINDS)
    assert len(kinds) > 15
    wide = {}
    for kind in kinds:
        title = page.evaluate(ONE, kind)
        if not page.locator(HELP).count():
            page.get_by_test_id("info-button").click()
        page.locator(HELP).get_by_role("heading", name=title, exact=True).first.wait_for()
        page.wait_for_timeout(300)  # pictures have come
        measured = page.locator(HELP).first.evaluate(WIDE)
        assert measured["width"] > 150
        look(page, f"help-{kind}")
        if measured["found"]:
            wide[kind] = measured["found"]
    assert wide == {}
