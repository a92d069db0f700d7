"""Guidance functions of other nodes that remember something from one call to the next, such as a running average.

They were written for one video at one noise level. Here chunks take turns, so each chunk gets a memory of its own. It
is found where such functions keep it: in variables of the function around them, which they assign to (``nonlocal``).
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from types import CellType, FunctionType
from typing import Any

from ..run.foreign import FUNCTIONS


class Remembered:
    """The variables that the functions on a model assign to, one set of values per chunk."""

    def __init__(self, model_options: Mapping[str, Any]) -> None:
        self.cells = [*{id(cell): cell for name in FUNCTIONS for cell in assigned(model_options.get(name))}.values()]
        self.values: dict[Hashable, list[Any]] = {}

    @contextmanager
    def of(self, part: Hashable) -> Iterator[None]:
        """Inside, the functions remember what they last did for this part of the video; afterwards, what they did
        before the run.
        """
        before = [cell.cell_contents for cell in self.cells]
        self.put(self.values.get(part, before))
        try:
            yield
        finally:
            self.values[part] = [cell.cell_contents for cell in self.cells]
            self.put(before)

    def rewind(self) -> Callable[[], None]:
        """What puts back what is remembered now, for a call that is made again."""
        values = dict(self.values)

        def back() -> None:
            self.values = dict(values)

        return back

    def put(self, values: list[Any]) -> None:
        for cell, value in zip(self.cells, values, strict=True):
            cell.cell_contents = value


def assigned(function: Any, seen: set[int] | None = None) -> Iterator[CellType]:
    """Variables of enclosing functions that ``function`` (or one of a list, or one that it calls) assigns to."""
    seen = set() if seen is None else seen
    if isinstance(function, list | tuple):
        for one in function:
            yield from assigned(one, seen)
    elif isinstance(function, FunctionType) and function.__closure__ and id(function) not in seen:
        seen.add(id(function))
        stored = {step.argval for step in dis.get_instructions(function) if step.opname == "STORE_DEREF"}
        for name, cell in zip(function.__code__.co_freevars, function.__closure__, strict=True):
            try:
                inside = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            if name in stored:
                yield cell
            else:
                yield from assigned(inside, seen)
