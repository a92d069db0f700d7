"""A node's inputs from what the core's parts declare (``flowcache_core/options.py``), and the way back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import Field, replace
from typing import Any

from comfy_api.latest import io

from ..flowcache_core.errors import SettingError, require
from ..flowcache_core.options import Option, options_of, shown


def placed_inputs(parts: Iterable[type]) -> list[tuple[int, io.Input]]:
    """(place, input) of every option of ``parts``; one that several share is offered once, as the first has it."""
    found: dict[str, tuple[Field[Any], Option]] = {}
    waiting = list(parts)
    while waiting:
        for label, (one, declared) in options_of(waiting.pop(0)).items():
            if label not in found:
                found[label] = one, declared
                waiting += (declared.parts or {}).values()
    return [(declared.place, input_of(label, one, declared)) for label, (one, declared) in found.items()]


def inputs_of(part: type) -> list[io.Input]:
    """The inputs of one part, in their places."""
    return [made for _, made in placed_inputs([part])]


def input_of(label: str, one: Field[Any], declared: Option) -> io.Input:
    """One widget: of choices, a switch, a whole number, a number, or a list of numbers as text."""
    start = shown(one, declared)
    if declared.parts is not None:
        start, declared = start.name, replace(declared, choices=tuple(declared.parts))
    common: dict[str, Any] = {"tooltip": declared.text, "advanced": declared.advanced or None}
    if declared.optional:
        common["optional"] = True
    if declared.choices:
        return io.Combo.Input(label, options=list(declared.choices), default=start, **common)
    if isinstance(start, bool):
        return io.Boolean.Input(label, default=start, **common)
    if isinstance(start, tuple):
        return io.String.Input(label, default=", ".join(f"{number:g}" for number in start), **common)
    limits: dict[str, Any] = {"min": declared.minimum, "max": declared.maximum}
    if declared.step is not None:
        limits["step"] = declared.step
    if isinstance(start, int):
        return io.Int.Input(label, default=start, **common, **limits)
    if declared.step is not None and declared.step < 0.01:
        limits["round"] = declared.step / 10
    return io.Float.Input(label, default=start, **common, **limits)


def chosen(part: type, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ``part`` from a node's fields; what a saved workflow lacks keeps its default."""
    values: dict[str, Any] = {}
    for label, (one, declared) in options_of(part).items():
        value = fields.get(label)
        if value is None:  # what the host hands over for what a workflow does not have
            continue
        if declared.parts is not None:
            value = part_of(label, fields, declared.parts)
        elif declared.none is not None and value == declared.none:
            value = None
        elif isinstance(one.default, tuple):
            value = numbers(label, value, whole="int" in str(one.type))
        values[one.name] = value
    return values


def part_of(label: str, fields: Mapping[str, Any], parts: Mapping[str, type]) -> Any:
    """The part that the field ``label`` names, made from the other fields."""
    require(fields[label] in parts, label, fields[label], ", ".join(parts))
    kind = parts[fields[label]]
    return kind(**chosen(kind, fields))


def numbers(field: str, text: str, *, whole: bool) -> tuple[float, ...]:
    """``"0, 1, 4"`` as numbers; an empty text is no number."""
    words = text.replace(",", " ").split()
    with suppress(ValueError):
        found = [float(word) for word in words]
        if all(word.isdecimal() for word in words) if whole else all(map(math.isfinite, found)):
            return tuple(int(word) for word in words) if whole else tuple(found)
    form = "whole numbers" if whole else "numbers"
    raise SettingError(field, text, f"{form} with commas between them, such as 0, 1, 2, 4")
