"""Another method on a module for a while, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(module: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """``make(original)`` in the place of a module's method, which may be another pack's object patch already."""
    original, patched = getattr(module, name), name in vars(module)
    setattr(module, name, make(original))
    try:
        yield
    finally:
        if patched:
            setattr(module, name, original)
        else:
            delattr(module, name)
