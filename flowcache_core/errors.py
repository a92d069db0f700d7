"""The error a user's setting can cause, which names the field, the value and what is accepted; and that of a run whose
values stopped being finite."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Of a value that somebody else wrote, a message repeats this much: enough to recognise it by.
SHOWN = 80
# Of what we say ourselves: fields hold names out of files, and lists of what is accepted can be long.
FIELD, FINDING, ACCEPTED = 120, 400, 2000


class Found(str):
    """A finding in our own words, whose quoted parts are short already (:func:`shown`, :func:`listed`)."""


class SettingError(ValueError):
    """A setting or a file is not usable. ``field`` is the user's name for it, ``accepted`` says what would work.

    The message is one line and of bounded length, whatever the value is.
    """

    def __init__(self, field: str, value: object, accepted: str) -> None:
        self.field, self.value, self.accepted = field, value, accepted
        limit = FINDING if isinstance(value, Found) else SHOWN
        found = shown(value, limit)
        super().__init__(f"{one_line(field, FIELD)}: got {found}, accepted: {one_line(accepted, ACCEPTED)}")

    def within(self, field: str) -> SettingError:
        """The same fault as one of ``field``, such as that of a file as one of the field that names the file."""
        value = self.value if isinstance(self.value, str) else shown(self.value)
        found = one_line(value, FINDING if isinstance(value, Found) else SHOWN)
        return SettingError(field, Found(f"{one_line(self.field, FIELD)}: {found}"), self.accepted)


def shown(value: object, limit: int = SHOWN) -> str:
    """``repr`` of any value on one line, cut in the middle to ``limit`` characters; never raises, never takes long."""
    if isinstance(value, str):
        text = one_line(value, limit)
        text = f'"{text}"' if "'" in text else f"'{text}'"
    else:
        try:
            text = _short.repr(value)
        except Exception:  # whatever its own __repr__ does
            text = f"a {type(value).__name__}"
    return one_line(text, limit + 2)  # with the quotes


def listed(names: Iterable[object], count: int = 4) -> str:
    """The first few names, each shortened, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - count} more" if len(every) > count else ""
    return ", ".join(one_line(str(name), SHOWN) for name in every[:count]) + more


def one_line(text: str, limit: int) -> str:
    """``text`` without line breaks and other unprintable signs, cut in the middle to ``limit`` characters."""
    text = _cut(text, 2 * limit)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return _cut(text, limit)


def _cut(text: str, limit: int) -> str:
    tail = limit // 3
    return text if len(text) <= limit else f"{text[: limit - tail - 3]}...{text[-tail:]}"


class _Short(reprlib.Repr):
    """``repr`` that looks at a few items and levels only."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 3, SHOWN, FINDING

    def repr_int(self, x: int, level: int) -> str:
        # Python itself refuses to write out some thousands of digits.
        return repr(x) if abs(x) < 10**30 else f"a whole number of {int(x.bit_length() * math.log10(2)) + 1} digits"


_short = _Short()


class NotFiniteError(ArithmeticError):
    """A result cannot be used: it holds NaN or infinite values. Its text says since when."""


def require(condition: bool, field: str, value: object, accepted: str) -> None:
    """Raise :class:`SettingError` unless ``condition`` holds."""
    if not condition:
        raise SettingError(field, value, accepted)


def is_finite(value: object) -> bool:
    """Whether ``value`` is a number that a float can hold: no bool, no NaN, no infinity, no 400 digits."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def require_finite(field: str, value: float, *, minimum: float, maximum: float = math.inf) -> None:
    """Raise unless ``value`` is a finite number in ``[minimum, maximum]`` (NaN and bool are refused)."""
    bound = f"a number >= {minimum:g}" if maximum == math.inf else f"a number from {minimum:g} to {maximum:g}"
    require(is_finite(value) and minimum <= value <= maximum, field, value, bound)


def require_finite_values(field: str, values: Tensor, accepted: str = "finite numbers only") -> None:
    """Raise when a tensor holds NaN or infinite values. Waits for its device."""
    if values.is_meta or bool(values.isfinite().all()):
        return
    nan, infinite = int(values.isnan().sum()), int(values.isinf().sum())
    kinds = [f"{count} {kind}" for count, kind in ((nan, "NaN"), (infinite, "infinite")) if count]
    raise SettingError(field, Found(f"{' and '.join(kinds)} of {values.numel()} values"), accepted)


# More than anything here counts, and little enough for the arithmetic of every library below.
LARGEST_COUNT = 2**31 - 1


def require_count(field: str, value: int, *, minimum: int, maximum: int | None = None) -> None:
    """Raise unless ``value`` is a whole number of at least ``minimum`` and at most ``maximum`` (2^31 - 1 if None)."""
    limit = LARGEST_COUNT if maximum is None else maximum
    ok = isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= limit
    said = maximum is not None or (isinstance(value, int) and value > limit)
    require(ok, field, value, f"a whole number >= {minimum}" + (f" and <= {limit}" if said else ""))
