"""What a person may set on a part: range, choices and explanation, written where the field is declared.

A policy, distance, quantity or compressor declares its fields with :func:`option`; nodes and command lines make their
inputs from :func:`options_of`, so a new part is offered everywhere without being named there.

    @dataclass(frozen=True)
    class Interval(ReusePolicy):
        interval: int = option(2, "Compute every n-th step.", minimum=1, maximum=1000)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any

KEY = "option"


@dataclass(frozen=True)
class Option:
    """How one field is offered.

    label: the name users see, the field's own when empty. choices: of a text. parts: name -> class, for a field that
    holds a part of its own, chosen by name. none: the number that stands for None. start: what an input begins with
    where that is not the default. optional: saved settings may lack it, made before it was offered. place: where it
    stands among the inputs; equal places keep the order of declaration. advanced: behind a fold.
    """

    text: str
    label: str = ""
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: tuple[str, ...] = ()
    parts: Mapping[str, type] | None = None
    none: int | None = None
    start: Any = None
    optional: bool = False
    place: int = 0
    advanced: bool = False


def option(default: Any, text: str, **details: Any) -> Any:
    """A dataclass field with this default that users may set; details are those of :class:`Option`."""
    return field(default=default, metadata={KEY: Option(text, **details)})


def replaced(part: type, name: str, default: Any, **details: Any) -> Any:
    """The field ``name`` of ``part`` with another default, for a part that builds on it; details as above."""
    inherited = next(one for one in fields(part) if one.name == name)
    return field(default=default, metadata={KEY: replace(inherited.metadata[KEY], **details)})


def options_of(part: type) -> dict[str, tuple[Field[Any], Option]]:
    """label -> (field, option) of every field of the dataclass ``part`` that declares one, in their places."""
    found = [(one, one.metadata[KEY]) for one in fields(part) if KEY in one.metadata]
    return {found_option.label or one.name: (one, found_option) for one, found_option in sorted(found, key=_place)}


def _place(pair: tuple[Field[Any], Option]) -> int:
    return pair[1].place


def shown(one: Field[Any], declared: Option) -> Any:
    """What an input begins with."""
    assert one.default is not MISSING
    if declared.start is not None:
        return declared.start
    return declared.none if one.default is None else one.default
