"""What a pickle of torch would build, without building it: no object is made, no name is looked up, nothing is called.

Only the instructions that ``torch.save`` writes are known; they are those that torch's own loader for weights takes.
Source: the instruction set in Python's :mod:`pickletools`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from ..errors import shown
from .limits import PICKLE_INSTRUCTIONS


class NotAnOutline(ValueError):
    """The pickle is damaged, or of a kind that holds more than weights."""


@dataclass(frozen=True)
class Name:
    """A name the pickle would import."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Stored:
    """A piece of data that lies outside the pickle."""

    identifier: Any


@dataclass(frozen=True, eq=False)
class Made:
    """The result of a call: a tensor, or some object."""

    function: Name
    arguments: tuple[Any, ...]


class _Mark:
    pass


MARK = _Mark()
ORDERED = Name("collections", "OrderedDict")
# Instruction -> the value that it puts down, or None for its own argument.
CONSTANTS: dict[str, Callable[[], Any] | None] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_LIST": list, "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple, "EMPTY_SET": list, "MARK": lambda: MARK,
    "BININT": None, "BININT1": None, "BININT2": None, "LONG1": None, "BINFLOAT": None, "BINUNICODE": None,
    "SHORT_BINSTRING": None,
}  # fmt: skip
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Outline:
    """One pickle out of ``source``, instruction by instruction. ``made`` and ``stored``: all calls and data in it."""

    def __init__(self, source: BytesIO) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.made: list[Made] = []
        self.stored: list[Stored] = []
        try:
            self.root = self._run(source)
        except NotAnOutline:
            raise
        except Exception as error:  # a damaged pickle fails in whatever way its bytes say
            raise NotAnOutline(f"a damaged pickle ({shown(str(error))})") from error

    def _run(self, source: BytesIO) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(source)):
            if count > PICKLE_INSTRUCTIONS:
                raise NotAnOutline(f"a pickle of more than {PICKLE_INSTRUCTIONS} instructions")
            if opcode.name == "STOP":
                return self.stack.pop()
            self._step(opcode.name, argument)
        raise NotAnOutline("a pickle cut short")

    def _step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in CONSTANTS:
            make = CONSTANTS[name]
            stack.append(argument if make is None else make())
        elif name in TUPLES:
            stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
        elif name == "TUPLE":
            stack.append(tuple(self._marked()))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self._set([key], [value])
        elif name == "SETITEMS":
            items = self._marked()
            self._set(items[::2], items[1::2])
        elif name == "APPEND":
            value = stack.pop()
            stack[-1].append(value)
        elif name == "APPENDS":
            items = self._marked()
            stack[-1].extend(items)
        elif name == "GLOBAL":
            stack.append(Name(*argument.split(" ", 1)))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(self._call(function, arguments))
        elif name == "BUILD":
            stack.pop()  # attributes of an object: nothing of them is weights
        elif name == "BINPERSID":
            stack.append(Stored(stack.pop()))
            self.stored.append(stack[-1])
        elif name != "PROTO":
            raise NotAnOutline(f"a pickle with the instruction {name}, which torch does not write")

    def _set(self, keys: list[Any], values: list[Any]) -> None:
        # The hash of a tuple a million levels deep ends the process.
        if not all(key is None or isinstance(key, str | int | float) for key in keys):
            raise NotAnOutline("a dictionary whose keys are neither texts nor numbers")
        self.stack[-1].update(zip(keys, values, strict=True))

    def _marked(self) -> list[Any]:
        """What lies above the last mark; the mark goes too."""
        place = next(i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i] is MARK)
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise NotAnOutline("a damaged pickle, or one that runs code (a call of something without a name)")
        if function == ORDERED and not arguments:
            return {}
        made = Made(function, arguments)
        self.made.append(made)
        return made
