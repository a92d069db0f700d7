"""The English texts of all nodes, as the frontend wants them, from what the server says of the nodes.

The schema is where they are written. The copy in ``locales/en`` gives the fields that a list entry reveals their names
and tooltips, which the frontend does not take from the schema.
``python tests/host/english.py http://127.0.0.1:8188`` writes it anew from a running server with the pack.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOCALES = ROOT / "locales"
FILE = LOCALES / "en" / "nodeDefs.json"
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"


def fields(inputs: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Key and tooltip of every field, those of list entries included. Keys have ``_`` where the field has a dot."""
    for group in ("required", "optional"):
        for name, (kind, *options) in inputs.get(group, {}).items():
            details = options[0] if options else {}
            yield f"{prefix}{name}", details.get("tooltip", "")
            for option in details.get("options", ()) if kind == DYNAMIC else ():
                yield from fields(option["inputs"], f"{prefix}{name}_")


def field_name(key: str, dynamic: tuple[str, ...]) -> str:
    """What stands before a field: its own name, without the list's that revealed it."""
    return next((key.removeprefix(f"{name}_") for name in dynamic if key.startswith(f"{name}_")), key)


def english(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """Content of ``nodeDefs.json`` for the answer of GET /object_info."""
    texts: dict[str, Any] = {}
    for name, node in nodes.items():
        if not name.startswith("FlowCache"):
            continue
        every = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        dynamic = tuple(key for key, (kind, *_) in every.items() if kind == DYNAMIC)
        inputs: dict[str, dict[str, str]] = {}
        for key, tooltip in fields(node["input"]):
            inputs.setdefault(key, {"name": field_name(key, dynamic), "tooltip": tooltip})
        outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
        texts[name] = {
            "display_name": node["display_name"],
            "description": node["description"],
            "inputs": inputs,
            "outputs": {str(number): {"name": label, "tooltip": tip} for number, (label, tip) in enumerate(outputs)},
        }
    return texts


def main(url: str) -> None:
    with urllib.request.urlopen(f"{url}/object_info") as answer:
        texts = english(json.load(answer))
    FILE.write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
