"""One piece of a sweep: numbers and names in, numbers and names out, so that any machine can do it, and do it again."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import require

PACKAGES = ("flowcache_core", "benchmarks")


@dataclass(frozen=True)
class Task:
    """name: unlike any other's of the sweep; under it the result is kept. work: ``module:function``, which gets
    ``arguments`` (JSON) as keywords and returns JSON; the same arguments give the same result wherever it runs.
    """

    name: str
    work: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def perform(work: str, arguments: Mapping[str, Any]) -> Any:
    """Do it here."""
    module, _, function = work.partition(":")
    require(module.split(".")[0] in PACKAGES and bool(function), "work", work, f"module:function of {PACKAGES}")
    call: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return call(**arguments)


@cache
def sources() -> str:
    """A hash of the Python files that tasks run: results of other versions must not be mixed."""
    root = Path(__file__).resolve().parents[2]
    found = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()
