"""The error a user's setting can cause, which names the field, the value and what is accepted; and that of a run whose
values stopped being finite."""

from __future__ import annotations

import math


class SettingError(ValueError):
    """A setting or a file is not usable. ``field`` is the user's name for it, ``accepted`` says what would work."""

    def __init__(self, field: str, value: object, accepted: str) -> None:
        self.field, self.value, self.accepted = field, value, accepted
        super().__init__(f"{field}: got {value!r}, accepted: {accepted}")


class NotFiniteError(ArithmeticError):
    """A result cannot be used: it holds NaN or infinite values. Its text says since when."""


def require(condition: bool, field: str, value: object, accepted: str) -> None:
    """Raise :class:`SettingError` unless ``condition`` holds."""
    if not condition:
        raise SettingError(field, value, accepted)


def require_finite(field: str, value: float, *, minimum: float, maximum: float = math.inf) -> None:
    """Raise unless ``value`` is a finite number in ``[minimum, maximum]`` (NaN and bool are refused)."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    bound = f"a number >= {minimum:g}" if maximum == math.inf else f"a number from {minimum:g} to {maximum:g}"
    require(ok and minimum <= value <= maximum, field, value, bound)


def require_count(field: str, value: int, *, minimum: int, maximum: int | None = None) -> None:
    """Raise unless ``value`` is a whole number of at least ``minimum`` (and at most ``maximum``)."""
    ok = isinstance(value, int) and not isinstance(value, bool)
    bound = f"a whole number >= {minimum}" + ("" if maximum is None else f" and <= {maximum}")
    require(ok and value >= minimum and (maximum is None or value <= maximum), field, value, bound)
