"""Which steps left values that are not finite, found out without making anybody wait for the device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..background import OnItsWay
from ..report.events import NotFinite

Place = tuple[int, int, int]
"""Tick, chunk, own step."""


@dataclass
class FiniteWatch:
    """One run's watch: ``note`` every step, ``send`` once a tick, take what has ``arrived``, at the end the ``rest``.

    A step leaves one flag per branch and video on the device. A tick's flags are copied in the background and looked at
    when they are there: at once on the CPU, a few ticks later on CUDA, on other devices at the end of the run.
    """

    _noted: list[tuple[Place, Tensor]] = field(default_factory=list, init=False)
    _sent: list[_Flags] = field(default_factory=list, init=False)

    def note(self, place: Place, velocity: Tensor, latents: Tensor) -> None:
        """velocity ``[branches, B, ...]`` of the step, latents ``[B, ...]`` after it."""
        if not latents.is_meta:
            answers, after = velocity.isfinite().flatten(2).all(2), latents.isfinite().flatten(1).all(1)
            self._noted.append((place, torch.cat([answers.to(after.device), after[None]])))

    def send(self) -> None:
        """The tick is over: its flags set out for the CPU."""
        if self._noted:
            places, flags = zip(*self._noted, strict=True)
            self._sent.append(_Flags(places, OnItsWay.of(torch.stack(flags))))
            self._noted.clear()

    def arrived(self) -> Iterator[NotFinite]:
        """Steps that are known by now, in the order in which they were taken."""
        while self._sent and self._sent[0].flags.here:
            yield from self._sent.pop(0).read()

    def rest(self) -> Iterator[NotFinite]:
        """All steps not yet told; waits for the device."""
        self.send()
        while self._sent:
            yield from self._sent.pop(0).read()


@dataclass(frozen=True)
class _Flags:
    """flags ``[steps, branches + 1, B]``: whether each branch's velocity and, last, the latents are finite."""

    places: tuple[Place, ...]
    flags: OnItsWay

    def read(self) -> Iterator[NotFinite]:
        for (tick, chunk, step), rows in zip(self.places, self.flags.wait().tolist(), strict=True):
            if not all(map(all, rows)):
                branches, videos = _broken(rows[:-1]), _broken(zip(*rows, strict=True))
                part: Literal["velocity", "latents"] = "velocity" if branches else "latents"
                branches = branches if len(branches) < len(rows) - 1 else ()
                videos = videos if len(videos) < len(rows[0]) else ()
                yield NotFinite(tick, chunk, step, part, branches, videos)


def _broken(rows: Iterable[Iterable[bool]]) -> tuple[int, ...]:
    """Those that are not all finite."""
    return tuple(number for number, row in enumerate(rows) if not all(row))
