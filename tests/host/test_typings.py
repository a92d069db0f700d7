"""The stubs in ``typings/`` name what the host has, with the parameters that the nodes give."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TYPINGS = Path(__file__).resolve().parents[2] / "typings"
ANYTHING = {"__getattr__", "__setattr__"}


def declared() -> Iterator[tuple[str, ast.stmt]]:
    for path in sorted(TYPINGS.rglob("*.pyi")):
        module = ".".join(path.relative_to(TYPINGS).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AnnAssign):
                yield module, node


def name_of(node: ast.stmt) -> str:
    return node.target.id if isinstance(node, ast.AnnAssign) else node.name  # type: ignore[attr-defined]


DECLARED = [(module, node) for module, node in declared() if not name_of(node).startswith("_")]


def takes(found: Any, stub: ast.FunctionDef) -> None:
    """The host's function has every parameter that the stub names."""
    real = inspect.signature(found).parameters
    free = any(one.kind is one.VAR_KEYWORD for one in real.values())
    for argument in [*stub.args.args, *stub.args.kwonlyargs]:
        assert argument.arg in real or argument.arg in ("self", "cls") or free, (stub.name, argument.arg, list(real))


@pytest.mark.parametrize(("module", "node"), DECLARED, ids=[f"{module}.{name_of(node)}" for module, node in DECLARED])
def test_the_host_has_it(module: str, node: ast.stmt) -> None:
    try:
        place = importlib.import_module(module)
    except ModuleNotFoundError:  # a name that the host's package has, such as comfy_api.latest.io
        package, _, inner = module.rpartition(".")
        place = getattr(importlib.import_module(package), inner)
    found = getattr(place, name_of(node))
    if isinstance(node, ast.FunctionDef):
        takes(found, node)
    if isinstance(node, ast.ClassDef):
        for inner in node.body:
            if isinstance(inner, ast.FunctionDef) and inner.name not in ANYTHING:
                takes(getattr(found, inner.name), inner)
            elif isinstance(inner, ast.ClassDef):
                assert inspect.isclass(getattr(found, inner.name)), inner.name


def test_there_are_stubs() -> None:
    assert len(DECLARED) > 50
