"""What a user reads: names, tooltips and help pages of every node, in English and Chinese."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from english import LOCALES, english
from hostkit import NODES

ROOT = Path(__file__).resolve().parents[2]
HELP = ROOT / "web" / "docs"
SERVED = "/extensions/flowcache/"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return english({name: node.GET_NODE_INFO_V1() for name, node in NODES.items()})


def locale(language: str) -> dict[str, Any]:
    texts: dict[str, Any] = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
    return texts


def shape(texts: Any) -> Any:
    """Keys without the strings."""
    return {key: shape(value) for key, value in texts.items()} if isinstance(texts, dict) else None


def strings(texts: Any) -> Iterator[str]:
    if isinstance(texts, dict):
        for value in texts.values():
            yield from strings(value)
    else:
        yield texts


def test_english_is_what_the_schema_says(schema: dict[str, Any]) -> None:
    assert locale("en") == schema, "run tests/host/english.py"


def test_chinese_has_every_node_field_and_output(schema: dict[str, Any]) -> None:
    assert shape(locale("zh")) == shape(schema)


def test_chinese_is_chinese(schema: dict[str, Any]) -> None:
    """Every tooltip and description; names of fields may be terms without one."""
    for name, texts in locale("zh").items():
        explained = [texts["description"], texts["display_name"]]
        explained += [entry["tooltip"] for part in ("inputs", "outputs") for entry in texts[part].values()]
        for text in explained:
            assert any("\u4e00" <= sign <= "\u9fff" for sign in text), (name, text)


def test_every_field_has_a_tooltip(schema: dict[str, Any]) -> None:
    assert all(text.strip() for text in strings(schema))


@pytest.mark.parametrize("name", sorted(NODES))
def test_every_node_has_a_help_page_that_names_its_fields(name: str, schema: dict[str, Any]) -> None:
    page = (HELP / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {schema[name]['display_name']}\n")
    for entry in schema[name]["inputs"].values():
        assert f"`{without_number(entry['name'])}" in page, entry["name"]
    for heading in ("## When it helps", "## When it cannot", "## Example"):
        assert heading in page


@pytest.mark.parametrize("name", sorted(NODES))
def test_every_node_has_a_chinese_help_page_that_names_its_fields(name: str) -> None:
    """Where the frontend looks for it first when it speaks Chinese."""
    page, texts = (HELP / name / "zh.md").read_text(encoding="utf-8"), locale("zh")[name]
    assert page.startswith(f"# {texts['display_name']}\n")
    for entry in texts["inputs"].values():
        assert f"`{without_number(entry['name'])}" in page, entry["name"]
    for heading in ("## 何时有用", "## 何时无用", "## 示例"):
        assert heading in page


def without_number(field: str) -> str:
    """``prompt_3`` and ``start_3`` are explained together with the other rows."""
    return field.rstrip(string.digits)


def test_pictures_of_the_help_pages_exist() -> None:
    shown = [
        (page, address)
        for page in HELP.glob("*.md")
        for address in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    ]
    assert shown
    for page, address in shown:
        assert address.startswith(SERVED), (page.name, address)
        assert (ROOT / "web" / address.removeprefix(SERVED)).is_file(), (page.name, address)
