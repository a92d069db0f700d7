"""What the registry, the workflows and a fresh machine read: versions agree, pins are exact, help pages are kept."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import flowcache_core

ROOT = Path(__file__).parents[2]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_version_is_the_same_everywhere() -> None:
    found = re.search(r'^version = "(\d+\.\d+\.\d+)"$', text("pyproject.toml"), re.MULTILINE)
    newest = re.search(r"^## \[(.+?)\]", text("CHANGELOG.md"), re.MULTILINE)
    assert found and newest
    assert found[1] == flowcache_core.__version__ == newest[1]


def test_development_requirements_are_exact_and_cover_every_supported_python() -> None:
    newer, older = set(), set()
    for line in text("requirements-dev.txt").splitlines():
        if line and not line.startswith("#"):
            pin = re.fullmatch(r'([a-z-]+)==[\d.]+(?:; python_version (>=|<) "3\.11")?', line)
            assert pin, line
            newer |= {pin[1]} if pin[2] != "<" else set()
            older |= {pin[1]} if pin[2] != ">=" else set()
    assert newer == older
    assert {"torch", "numpy", "safetensors", "pytest", "ruff", "mypy"} <= newer
    assert re.search(r"^torch==2\.13\.0$", text("requirements-dev.txt"), re.MULTILINE)


def test_the_core_needs_what_it_says_and_nothing_else() -> None:
    """Imports of whole modules; extras are imported inside the functions that use them."""
    found = set()
    for path in (ROOT / "flowcache_core").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.partition(".")[0])
    found -= set(sys.stdlib_module_names)
    assert found == {"torch", "numpy", "safetensors"}
    claims = (flowcache_core.__doc__ or "", text("docs/architecture.md"), text("pyproject.toml"))
    assert all(name in claim for claim in claims for name in found) and not any("einops" in claim for claim in claims)


def test_registry_id_and_archive() -> None:
    name = re.search(r'^name = "(.+)"$', text("pyproject.toml"), re.MULTILINE)
    assert name and "comfyui" not in name[1].lower() and not name[1][0].isdigit()
    patterns = [line for line in text(".comfyignore").splitlines() if line and not line.startswith("#")]
    assert all(pattern.startswith("/") for pattern in patterns), "unanchored patterns drop web/docs"
    assert not {"/web/", "/flowcache_core/", "/nodes/", "/workflows/", "/locales/"} & set(patterns)


def test_pages_that_notes_tooltips_and_messages_name_are_in_the_archive() -> None:
    ignored = [line for line in text(".comfyignore").splitlines() if line and not line.startswith("#")]
    named = {
        (page, str(path.relative_to(ROOT)))
        for folder in ("nodes", "flowcache_core", "web", "workflows", "locales")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".md", ".json", ".js")
        for page in re.findall(r"(?<![\w/])docs/[\w-]+\.\w+", path.read_text(encoding="utf-8"))
    }
    assert {page for page, _ in named} >= {"docs/skyreels.md", "docs/report-schema.md"}
    for page, place in named:
        assert (ROOT / page).is_file(), (place, page)
        assert not any(f"/{page}".startswith(pattern) for pattern in ignored), (place, page)


def test_the_list_of_nodes_names_every_node_once_and_no_other() -> None:
    """``locales/en`` is what a running host says of the nodes (``tests/host/test_texts.py``). A node that the page
    speaks of elsewhere is in its list too."""
    texts = json.loads(text("locales/en/nodeDefs.json"))
    there = {node["display_name"] for node in texts.values()}
    page = text("docs/nodes.md")
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")][1:]
    told = [name for row in rows for name in row.split(", ")]
    assert sorted(told) == sorted(there)
    for name in texts:
        assert (ROOT / "web" / "docs" / f"{name}.md").is_file(), name
