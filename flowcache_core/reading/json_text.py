"""JSON from outside: bounded in size and depth, each key once, finite numbers, text that can be printed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..errors import Found, SettingError, shown
from .limits import JSON_BYTES, JSON_DEPTH, JSON_DIGITS
from .regular_file import require_file


class _Refused(ValueError):
    """What the text holds that is not accepted, in words."""


def read_json(path: Path, field: str, accepted: str) -> Any:
    """Content of a JSON file. SettingError as for :func:`parse_json`, or when it cannot be read."""
    size = require_file(path, field, accepted)
    if size > JSON_BYTES:
        raise SettingError(field, Found(f"{size} bytes"), f"{accepted}, of at most {JSON_BYTES} bytes")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SettingError(field, Found(f"unreadable: {error.strerror or error}"), accepted) from error
    return parse_json(content, field, accepted)


def read_object(path: Path, field: str, accepted: str) -> dict[str, Any]:
    """Content of a JSON file that holds an object; SettingError otherwise."""
    return _object(read_json(path, field, accepted), field, accepted)


def parse_object(text: str | bytes, field: str, accepted: str) -> dict[str, Any]:
    """The object in a JSON text; SettingError otherwise."""
    return _object(parse_json(text, field, accepted), field, accepted)


def parse_json(text: str | bytes, field: str, accepted: str) -> Any:
    """Content of a JSON text (bytes: UTF-8, a byte order mark allowed).

    SettingError for what is not JSON, NaN and infinity included, for a key that comes twice, and beyond the limits.
    """
    if len(text) > JSON_BYTES:
        raise SettingError(field, Found(f"{len(text)} characters"), f"{accepted}, of at most {JSON_BYTES}")
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8").removeprefix("\ufeff")
        content = json.loads(
            text, object_pairs_hook=_once, parse_int=_whole, parse_float=_number, parse_constant=_constant
        )
        _check(content)
    except (ValueError, RecursionError) as error:
        nested = f"nested more than {JSON_DEPTH} deep"
        reason = nested if isinstance(error, RecursionError) else str(error)
        raise SettingError(field, Found(f"unreadable: {reason}"), accepted) from None
    return content


def _object(content: Any, field: str, accepted: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise SettingError(field, content, f"{accepted}: a JSON object")
    return content


def _once(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) < len(items):
        seen: set[str] = set()
        twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused(f"the key {shown(twice)} twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > JSON_DIGITS:
        raise _Refused(f"a number of {len(digits)} digits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _Refused(f"the number {shown(digits)}, which no computer holds")
    return value


def _constant(name: str) -> float:
    raise _Refused(f"{name}, which is not JSON")


def _check(content: Any) -> None:
    """Depth, and text that is no text (half a surrogate pair), without recursion."""
    level, depth = [content], 0
    while level:
        if depth > JSON_DEPTH:
            raise _Refused(f"nested more than {JSON_DEPTH} deep")
        below: list[Any] = []
        for value in level:
            if isinstance(value, str) and not value.isascii():
                value.encode("utf-8")
            elif isinstance(value, dict):
                below += value
                below += value.values()
            elif isinstance(value, list):
                below += value
        level, depth = below, depth + 1
