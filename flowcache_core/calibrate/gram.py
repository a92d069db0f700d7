"""Inner products of a chunk's velocities over its steps: all that a schedule search needs to know of a model."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import SettingError
from .search import Floats


@dataclass
class GramSum:
    """Sum of ``<v_i, v_j> / values`` over ``count`` chunks, ``[steps, steps]`` float64; None before the first."""

    total: Tensor | None = None
    count: int = 0

    def add(self, total: Tensor, count: int) -> None:
        self.total = total if self.total is None else self.total + total
        self.count += count

    def mean(self) -> Floats:
        """SettingError before the first chunk."""
        if self.total is None:
            raise SettingError("recording", "no whole chunk of this kind", "a run that finished one")
        found: Floats = (self.total / self.count).numpy()
        return found


@dataclass
class Grams:
    """What a recording adds up, the chunks that begin a video apart from the later ones, as they bend more.

    sigmas: noise levels of the runs, None before the first. begun: chunks that took their first step, one per video of
    a batch; those that are not in ``first`` or ``later`` were interrupted or not finite.
    """

    sigmas: tuple[float, ...] | None = None
    begun: int = 0
    first: GramSum = field(default_factory=GramSum)
    later: GramSum = field(default_factory=GramSum)

    @property
    def levels(self) -> tuple[float, ...]:
        """The noise levels. SettingError when nothing was recorded."""
        if self.sigmas is None or not self.whole:
            raise SettingError("recording", "no whole chunk", "a run that finished at least one")
        return self.sigmas

    @property
    def whole(self) -> int:
        return self.first.count + self.later.count

    def tables(self) -> tuple[Floats, Floats]:
        """Mean inner products of first and of later chunks; where one kind is missing, those of the other."""
        first, later = self.first, self.later
        return (first if first.count else later).mean(), (later if later.count else first).mean()

    def add(self, grams: Tensor, *, first: bool) -> None:
        """The tables ``[B, steps, steps]`` of one finished chunk; rows that are not finite are left out."""
        finite = grams[torch.isfinite(grams).flatten(1).all(1)]
        if len(finite):
            (self.first if first else self.later).add(finite.sum(0), len(finite))
