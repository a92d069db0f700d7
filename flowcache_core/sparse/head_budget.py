"""The table of p per head that a calibration ends in, and what it promises."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .assignment import assign
from .head_errors import Subject


@dataclass(frozen=True)
class HeadBudget:
    """p per head (``p[layer][head]``, for :class:`XAttention`). error: of the velocity, as if the heads' errors added
    up; density: mean over heads, on the samples' contexts.
    """

    p: tuple[tuple[float, ...], ...]
    error: float
    density: float


class Measured(Protocol):
    """Errors and densities of heads at candidates."""

    @property
    def subject(self) -> Subject: ...

    def means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``[layers * heads, candidates]`` each."""
        ...


def share_out(errors: Measured, density: float) -> HeadBudget:
    """The least summed error at a mean density of at most ``density``. SettingError when no table is so sparse."""
    table = assign(*errors.means(), density)
    return _budget(errors, table.choice, table.error, table.density)


def shared(errors: Measured, candidate: int) -> HeadBudget:
    """One p for all heads: what :func:`share_out` is compared with, at the density this one has."""
    error, density = errors.means()
    choice = (candidate,) * len(error)
    return _budget(errors, choice, float(error[:, candidate].sum()), float(density[:, candidate].mean()))


def predicted(table: Measured) -> list[dict[str, float]]:
    """At every candidate's density: summed errors of one p for all heads, and of p per head."""
    rows = []
    for index, p in enumerate(table.subject.candidates):
        if p < 1:
            one = shared(table, index)
            best = share_out(table, one.density)
            row = {"density": one.density, "p": p, "shared": one.error, "per_head": best.error}
            rows.append({key: float(f"{value:.4g}") for key, value in row.items()})
    return rows


def _budget(errors: Measured, choice: tuple[int, ...], error: float, density: float) -> HeadBudget:
    subject = errors.subject
    p = np.array(subject.candidates)[list(choice)].tolist()
    cuts = range(0, len(p) + 1, subject.heads)
    return HeadBudget(tuple(tuple(p[a:b]) for a, b in pairwise(cuts)), error, density)
