"""Workflows as the frontend saves them, and their copies in the API format, which the tests post.

``python tests/host/api_copy.py`` writes the copies anew after a workflow has been changed in the frontend.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "workflows"
COPIES = Path(__file__).resolve().parent / "api"
ONLY_IN_THE_FRONTEND = ("MarkdownNote",)
FOLLOWED_BY_CONTROL = ("noise_seed", "seed")
"""Fields after which the frontend keeps a value of its own: what becomes of the seed after a run."""


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def names() -> list[str]:
    """Of all templates."""
    return sorted(path.stem for path in WORKFLOWS.glob("*.json"))


def api_copy(workflow: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt that the frontend would post for ``workflow``, with what is inside of subgraphs."""
    definitions = {one["id"]: one for one in workflow.get("definitions", {}).get("subgraphs", ())}
    sources = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    inner = {node["id"]: definitions[node["type"]] for node in workflow["nodes"] if node["type"] in definitions}

    def source(node: int, slot: int) -> list[Any]:
        """Of a link in the graph itself."""
        if node not in inner:
            return [str(node), slot]
        links = {link["id"]: link for link in inner[node]["links"]}
        link = links[inner[node]["outputs"][slot]["linkIds"][0]]
        return [f"{node}:{link['origin_id']}", link["origin_slot"]]

    prompt = {}
    for node in workflow["nodes"]:
        if node["id"] in inner:
            given = [source(*sources[field["link"]]) for field in node["inputs"]]
            links = {link["id"]: link for link in inner[node["id"]]["links"]}
            at = {
                number: given[link["origin_slot"]]
                if link["origin_id"] < 0
                else [f"{node['id']}:{link['origin_id']}", link["origin_slot"]]
                for number, link in links.items()
            }
            for one in inner[node["id"]]["nodes"]:
                prompt[f"{node['id']}:{one['id']}"] = api_node(one, at)
        elif node["type"] not in ONLY_IN_THE_FRONTEND:
            links = {field["link"] for field in node.get("inputs", ()) if field.get("link") is not None}
            prompt[str(node["id"])] = api_node(node, {number: source(*sources[number]) for number in links})
    return prompt


def api_node(node: Mapping[str, Any], sources: Mapping[int, list[Any]]) -> dict[str, Any]:
    """sources: by link."""
    values = iter(node.get("widgets_values") or ())
    inputs: dict[str, Any] = {}
    for field in node.get("inputs", ()):
        if "widget" in field:
            inputs[field["name"]] = next(values)
            if field["name"] in FOLLOWED_BY_CONTROL:
                next(values)
        if field.get("link") is not None:
            inputs[field["name"]] = sources[field["link"]]
    left = list(values)
    if left:
        raise ValueError(f"{node['type']}: widget values without a field: {left}")
    return {"class_type": node["type"], "inputs": inputs}


def write_copies() -> None:
    for name in names():
        text = json.dumps(api_copy(read(WORKFLOWS / f"{name}.json")), indent=1, ensure_ascii=False)
        (COPIES / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_copies()
