"""Where nodes stand on the screen: what covers what, and what is in sight."""

from __future__ import annotations

from typing import Any

# Rectangles of the nodes as they are drawn, titles included, in the graph's units.
RECTANGLES = """vue => app.graph.nodes.map(n => {
    const title = LiteGraph.NODE_TITLE_HEIGHT, folded = n.flags?.collapsed;
    const element = vue ? document.querySelector(`[data-node-id="${n.id}"]`) : null;
    const box = element?.getBoundingClientRect(), scale = app.canvas.ds.scale;
    return {name: `${n.type} ${n.id}`, left: n.pos[0], top: n.pos[1] - title,
        width: box ? box.width / scale : folded ? n._collapsed_width ?? n.size[0] : n.size[0],
        height: box ? box.height / scale : folded ? title : n.size[1] + title};
})"""
GROUPS = """() => app.graph.groups.map(group => ({name: group.title, left: group.pos[0], top: group.pos[1],
    width: group.size[0], height: group.size[1]}))"""
VIEW = """() => {
    const ds = app.canvas.ds, canvas = app.canvas.canvas.getBoundingClientRect();
    return {scale: ds.scale, left: -ds.offset[0], top: -ds.offset[1],
        right: canvas.width / ds.scale - ds.offset[0], bottom: canvas.height / ds.scale - ds.offset[1]};
}"""
SMALLEST = 8 / 14  # of a view: below, letters are smaller than 8 pixels and the classic renderer leaves them out
EDGE = 1  # units of rounding


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


def cut_by_groups(page: Any, boxes: list[dict[str, Any]]) -> list[str]:
    """Nodes that begin in a group's box and do not end in it."""
    groups: list[dict[str, Any]] = page.evaluate(GROUPS)
    return [
        f"{box['name']} by {group['name']}"
        for group in groups
        for box in boxes
        if group["left"] <= box["left"] < group["left"] + group["width"]
        and group["top"] <= box["top"] < group["top"] + group["height"]
        and (
            box["left"] + box["width"] > group["left"] + group["width"] + EDGE
            or box["top"] + box["height"] > group["top"] + group["height"] + EDGE
        )
    ]


def still(page: Any) -> list[dict[str, Any]]:
    """:func:`rectangles`, once nothing moves any more: nodes grow with what they show."""
    before: list[dict[str, Any]] = []
    for _ in range(30):
        page.wait_for_timeout(300)
        found = rectangles(page)
        if found == before:
            break
        before = found
    return found


def outside(boxes: list[dict[str, Any]], view: dict[str, float]) -> list[str]:
    return [
        box["name"]
        for box in boxes
        if box["left"] < view["left"] or box["left"] + box["width"] > view["right"]
        or box["top"] < view["top"] or box["top"] + box["height"] > view["bottom"]
    ]  # fmt: skip


def view_of(page: Any) -> dict[str, float]:
    found: dict[str, float] = page.evaluate(VIEW)
    return found
