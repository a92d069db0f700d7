"""Whether the values of a settings object are of the types that its fields declare: the annotation is the contract."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence, Set
from dataclasses import fields
from functools import cache
from typing import Any

from .errors import SettingError, is_finite

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "None"}
LARGEST = 2**64  # what any field of ours counts or seeds with is less


def require_types(settings: object) -> None:
    """SettingError naming the first field of a dataclass instance whose value is not of its declared type.

    Numbers must be finite, and a bool is no number. Fields of classes are checked by class only: those check their own.
    """
    hints = _hints(type(settings))  # type: ignore[arg-type]
    for field in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, field.name)
        if not _fits(value, hints[field.name]):
            raise SettingError(field.name, value, _words(hints[field.name]))


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _fits(value: object, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is typing.Literal:
        return any(value is one or (type(value) is type(one) and value == one) for one in arguments)
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return is_finite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST
    if origin is tuple and arguments[-1:] != (...,):
        whole = isinstance(value, tuple) and len(value) == len(arguments)
        return whole and all(_fits(one, kind) for one, kind in zip(value, arguments))  # type: ignore[call-overload]
    if origin in (tuple, Sequence, list, set, frozenset, Set):
        listed = isinstance(value, origin) and not isinstance(value, str | bytes)
        return listed and all(_fits(one, arguments[0]) for one in value)  # type: ignore[attr-defined]
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _fits(key, arguments[0]) and _fits(one, arguments[1]) for key, one in value.items()
        )
    return isinstance(value, origin or hint)


def _words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(one) for one in arguments)
    if origin is typing.Literal:
        return " or ".join(map(str, arguments))
    if origin is tuple and arguments[-1:] != (...,):
        return f"({', '.join(_words(one) for one in arguments)})"
    if origin is not None:
        return f"a {origin.__name__} of which each is {_words(arguments[0])}"
    return WORDS.get(hint) or f"a {getattr(hint, '__name__', hint)}"
