"""Templates as they stand on the screen: nothing covers anything, and one sees it without zooming."""

from __future__ import annotations

from typing import Any

import pytest
from api_copy import names
from panels import idle, queue
from test_frontend import MINI

# Rectangles of the nodes as they are drawn, titles included, in the graph's units.
RECTANGLES = """vue => app.graph.nodes.map(n => {
    const title = LiteGraph.NODE_TITLE_HEIGHT, folded = n.flags?.collapsed;
    const element = vue ? document.querySelector(`[data-node-id="${n.id}"]`) : null;
    const box = element?.getBoundingClientRect(), scale = app.canvas.ds.scale;
    return {name: `${n.type} ${n.id}`, left: n.pos[0], top: n.pos[1] - title,
        width: box ? box.width / scale : folded ? n._collapsed_width ?? n.size[0] : n.size[0],
        height: box ? box.height / scale : folded ? title : n.size[1] + title};
})"""
VIEW = """() => {
    const ds = app.canvas.ds, canvas = app.canvas.canvas.getBoundingClientRect();
    return {scale: ds.scale, left: -ds.offset[0], top: -ds.offset[1],
        right: canvas.width / ds.scale - ds.offset[0], bottom: canvas.height / ds.scale - ds.offset[1]};
}"""
SMALLEST = 0.49  # of a view: below, the classic renderer leaves texts out
EDGE = 1  # units of rounding


def load(page: Any, name: str) -> None:
    """As the template browser does, with the view that the template brings."""
    page.evaluate(
        """async name => {
            const answer = await fetch(`/api/workflow_templates/flowcache/${name}.json`);
            await window.app.loadGraphData(await answer.json(), true, true, null);
        }""",
        name,
    )
    page.wait_for_timeout(2500)


def rectangles(page: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.evaluate(RECTANGLES, page.renderer != "classic")
    return found


def overlaps(boxes: list[dict[str, Any]]) -> list[str]:
    return [
        f"{one['name']} and {other['name']}"
        for number, one in enumerate(boxes)
        for other in boxes[number + 1 :]
        if one["left"] + one["width"] > other["left"] + EDGE
        and other["left"] + other["width"] > one["left"] + EDGE
        and one["top"] + one["height"] > other["top"] + EDGE
        and other["top"] + other["height"] > one["top"] + EDGE
    ]


@pytest.mark.parametrize("name", names())
def test_nothing_covers_anything_and_all_is_in_sight(page: Any, name: str) -> None:
    load(page, name)
    boxes = rectangles(page)
    assert overlaps(boxes) == []
    first = min(boxes, key=lambda box: (box["left"], box["top"]))
    assert first["name"].startswith("MarkdownNote") and first["top"] == min(box["top"] for box in boxes)
    view = page.evaluate(VIEW)
    assert view["scale"] >= SMALLEST, view
    outside = [
        box["name"]
        for box in boxes
        if box["left"] < view["left"] or box["left"] + box["width"] > view["right"]
        or box["top"] < view["top"] or box["top"] + box["height"] > view["bottom"]
    ]  # fmt: skip
    assert outside == [], view


def test_nothing_covers_anything_after_a_run(page: Any) -> None:
    """The map, the panels, the preview and the results have come."""
    load(page, MINI)
    queue(page)
    idle(page)
    page.wait_for_timeout(3000)
    assert overlaps(rectangles(page)) == []
