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
    """The prompt that the frontend would post for ``workflow``."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in ONLY_IN_THE_FRONTEND:
            continue
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
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def write_copies() -> None:
    for name in names():
        text = json.dumps(api_copy(read(WORKFLOWS / f"{name}.json")), indent=1, ensure_ascii=False)
        (COPIES / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_copies()
