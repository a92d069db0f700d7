"""Policies, distances and reused quantities from names and numbers, as presets, nodes and command lines give them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from ..errors import SettingError
from . import DISTANCES, POLICIES, QUANTITIES
from .base import ReusePolicy
from .distance import Distance
from .quantity import Quantity

Part = TypeVar("Part")


def build_policy(settings: Mapping[str, Any]) -> ReusePolicy:
    """A policy from ``{"name": ..., <its fields>}``; ``distance`` may be a name or a mapping of the same form.

    SettingError for an unknown name, an unknown field, or a value the policy refuses.
    """
    values = dict(settings)
    distance = values.get("distance")
    if distance is not None and not isinstance(distance, Distance):
        given = {"name": distance} if isinstance(distance, str) else distance
        values["distance"] = _build("distance", DISTANCES, given)
    return _build("policy", POLICIES, values)


def build_quantity(settings: str | Mapping[str, Any]) -> Quantity:
    """A reused quantity from its name, or from ``{"name": ..., <its fields>}``."""
    return _build("reused quantity", QUANTITIES, {"name": settings} if isinstance(settings, str) else settings)


def _build(what: str, registry: Mapping[str, type[Part]], settings: Mapping[str, Any]) -> Part:
    values = dict(settings)
    name = values.pop("name", None)
    if name not in registry:
        raise SettingError(what, name, ", ".join(sorted(registry)))
    kind = registry[name]
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        raise SettingError(f"{what} {name}", unknown[0], ", ".join(sorted(known)) or "no fields")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
