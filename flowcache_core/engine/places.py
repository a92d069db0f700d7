"""How often each place of a chunk is computed, in runs that compute some places and not others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from ..background import OnItsWay
from ..plan.base import Chunk
from ..report.events import PlacesComputed
from ..rows import Rows


@dataclass
class PlaceCounts:
    """One run's: :meth:`whole` or :meth:`part` for every computed step, :meth:`finish` a chunk, then what has
    :meth:`arrived`, at the end the :meth:`rest`. Counts of parts lie where the rows do, and are read once here.
    """

    steps: int
    _whole: dict[int, int] = field(default_factory=dict, init=False)
    _parts: dict[int, Tensor] = field(default_factory=dict, init=False)
    _sent: list[tuple[Chunk, int, OnItsWay]] = field(default_factory=list, init=False)

    def whole(self, chunk: int) -> None:
        self._whole[chunk] = self._whole.get(chunk, 0) + 1

    def part(self, chunk: int, rows: Rows) -> None:
        mask = rows.mask(rows.index.device).int()
        self._parts[chunk] = self._parts[chunk] + mask if chunk in self._parts else mask

    def finish(self, chunk: Chunk) -> None:
        """Nothing is told of a chunk of which no step was computed in part."""
        whole, parts = self._whole.pop(chunk.index, 0), self._parts.pop(chunk.index, None)
        if parts is not None and not parts.is_meta:
            self._sent.append((chunk, whole, OnItsWay.of(parts)))

    def arrived(self) -> Iterator[PlacesComputed]:
        """What is known by now, in the order in which chunks finished."""
        while self._sent and self._sent[0][2].here:
            yield self._tell(*self._sent.pop(0))

    def rest(self) -> Iterator[PlacesComputed]:
        """All that is not yet told; waits for the device."""
        while self._sent:
            yield self._tell(*self._sent.pop(0))

    def _tell(self, chunk: Chunk, whole: int, parts: OnItsWay) -> PlacesComputed:
        counted = parts.wait().tolist()
        counts = tuple(tuple(tuple(whole + place for place in row) for row in frame) for frame in counted)
        return PlacesComputed(chunk.index, chunk.first_frame, self.steps, counts)
