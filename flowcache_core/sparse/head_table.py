"""A calibration's outcome as a preset keeps it: every head's error and density at every candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SettingError, require
from .head_errors import HeadErrors, Subject

Rows = tuple[tuple[float, ...], ...]
"""``[layers * heads][candidates]``."""


@dataclass(frozen=True)
class HeadTable:
    """Means over a calibration's samples. error: relative squared error of the velocity with this head alone sparse;
    density: share of its pairs that the head computes.
    """

    subject: Subject
    error: Rows
    density: Rows

    def __post_init__(self) -> None:
        heads, candidates = self.subject.layers * self.subject.heads, len(self.subject.candidates)
        for name, top in (("error", np.inf), ("density", 1.0)):
            rows = getattr(self, name)
            ok = len(rows) == heads and all(len(row) == candidates for row in rows)
            ok = ok and all(isinstance(x, int | float) and 0 <= x <= top for row in rows for x in row)
            require(ok, name, f"{len(rows)} heads", f"[{heads}][{candidates}] numbers, one per head and candidate")

    @classmethod
    def of(cls, errors: HeadErrors) -> HeadTable:
        """SettingError when no sample is complete. Rounded as it will be written."""
        error, density = errors.means()
        return cls(
            errors.subject,
            tuple(tuple(float(f"{x:.4g}") for x in row) for row in error.tolist()),
            tuple(tuple(round(x, 4) for x in row) for row in density.tolist()),
        )

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self._arrays

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return np.array(self.error), np.array(self.density)

    def shared_p(self, density: float) -> float:
        """The one p that gives all heads together this density, between the candidates on a straight line."""
        means = self.means()[1].mean(0)
        return float(np.interp(density, means, self.subject.candidates))

    def row(self) -> dict[str, Any]:
        """As a preset file states it."""
        return {**asdict(self.subject), "error": self.error, "density": self.density}

    @classmethod
    def from_row(cls, row: object) -> HeadTable:
        """SettingError (field "table") for what :meth:`row` has not written."""
        accepted = "a table of measured heads, as calibrate-heads writes it"
        if not isinstance(row, Mapping):
            raise SettingError("table", row, accepted)
        try:
            named = {key: value for key, value in row.items() if key not in ("error", "density")}
            subject = Subject(**{**named, "candidates": tuple(row["candidates"])})
            tables = {name: tuple(map(tuple, row[name])) for name in ("error", "density")}
            return cls(subject, **tables)
        except SettingError:
            raise
        except (KeyError, TypeError) as error:
            raise SettingError("table", f"{type(error).__name__}: {error}", accepted) from error
