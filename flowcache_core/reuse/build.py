"""Policies, distances and reused quantities from names and numbers, as presets, nodes and command lines give them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from ..errors import SettingError, require
from . import DISTANCES, POLICIES, QUANTITIES
from .base import ReusePolicy
from .distance import Distance
from .quantity import Quantity

Part = TypeVar("Part")


def build_policy(settings: Mapping[str, Any]) -> ReusePolicy:
    """A policy from ``{"name": ..., <its fields>}``; ``distance`` may be a name or a mapping of the same form.

    SettingError for an unknown name, an unknown field, or a value the policy refuses.
    """
    values = _mapping("policy", settings)
    if "distance" in values and not isinstance(values["distance"], Distance):
        values["distance"] = build_part("distance", DISTANCES, values["distance"])
    return build_part("policy", POLICIES, values)


def policy_from_text(text: str) -> ReusePolicy:
    """A policy as command lines take it: its name, or the JSON object of a preset file, ``{"name": ..., ...}``."""
    if not text.lstrip().startswith("{"):
        return build_policy({"name": text})
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingError("policy", text, 'a name, or {"name": ..., <its fields>} as JSON') from error
    return build_policy(settings)


def build_quantity(settings: str | Mapping[str, Any]) -> Quantity:
    """A reused quantity from its name, or from ``{"name": ..., <its fields>}``."""
    return build_part("reused quantity", QUANTITIES, settings)


def _mapping(what: str, settings: object) -> dict[str, Any]:
    """The settings as a dict of their own; a name alone is a part with its default fields."""
    if isinstance(settings, str):
        return {"name": settings}
    if not isinstance(settings, Mapping) or not all(isinstance(key, str) for key in settings):
        raise SettingError(what, settings, 'a name, or {"name": ..., <its fields>}')
    return dict(settings)


def build_part(what: str, registry: Mapping[str, type[Part]], settings: object) -> Part:
    values = _mapping(what, settings)
    name = values.pop("name", None)
    if not isinstance(name, str) or name not in registry:
        raise SettingError(what, name, ", ".join(sorted(registry)))
    kind = registry[name]
    known = {field.name: field for field in fields(kind) if field.init}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise SettingError(f"{what} {name}", unknown[0], ", ".join(sorted(known)) or "no fields")
    for key, value in values.items():
        if isinstance(known[key].default, bool):
            require(isinstance(value, bool), key, value, "true or false")
        elif isinstance(known[key].default, tuple):
            require(_is_numbers(value), key, value, "a list of numbers")
            values[key] = tuple(value)
    return kind(**values)


def _is_numbers(value: object) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(one, int | float) and not isinstance(one, bool) for one in value
    )
