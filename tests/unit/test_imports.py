"""Who may import whom, by reading the imports: no circles, and a core that knows no host."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("flowcache_core", "nodes")
HOST = {
    "comfy",
    "comfy_api",
    "comfy_extras",
    "comfy_execution",
    "execution",
    "folder_paths",
    "latent_preview",
    "server",
}


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the pack."""
    found = {}
    for part in PARTS:
        for path in sorted((ROOT / part).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported(name: str) -> Iterator[str]:
    """Every module that ``name`` imports anywhere, inside functions too; what is only for type checkers left out."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{source}.{alias.name}".lstrip(".")
                yield submodule if submodule in MODULES else source


GRAPH = {name: {other for other in imported(name) if other in MODULES and other != name} for name in MODULES}


def circles() -> list[list[str]]:
    """Groups of modules that reach one another (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in GRAPH[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for name in GRAPH:
        if name not in index:
            visit(name)
    return found


def test_there_are_enough_modules_to_look_at() -> None:
    assert len(MODULES) > 100 and sum(map(len, GRAPH.values())) > 300


def test_no_module_reaches_itself() -> None:
    assert circles() == []


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("flowcache_core")])
def test_the_core_imports_neither_host_nor_nodes(name: str) -> None:
    outside = {other.partition(".")[0] for other in imported(name)}
    assert not outside & (HOST | {"nodes"})
