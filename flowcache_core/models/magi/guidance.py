"""How MAGI-1's forwards of one chunk combine into the velocity that is integrated: pure functions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...errors import require, require_count, require_finite
from ...fields import require_types

TIME_TOLERANCE = 1e-7
NEARLY_CLEAN_TIME = 0.3
PREVIOUS_SHARE = 0.7
CLEAN_TIME = 0.9999
CLEAN_RANGE, GIVEN_RANGE = 1, 8


@dataclass(frozen=True)
class GuidanceScales:
    """Base model: after time ``times[i]`` (1 is clean) earlier chunks weigh ``previous[i]``, the text ``text[i]``."""

    times: tuple[float, ...] = (0.0, 0.0217, 0.1, 0.3, 0.999)
    previous: tuple[float, ...] = (1.5, 1.5, 1.5, 1.0, 1.0)
    text: tuple[float, ...] = (7.5, 7.5, 7.5, 0.0, 0.0)

    def __post_init__(self) -> None:
        require_types(self)
        rising = len(self.times) > 0 and all(a < b for a, b in zip(self.times, self.times[1:], strict=False))
        require(rising and self.times[0] <= 0, "guidance times", self.times, "rising values, the first 0")
        for name in ("previous", "text"):
            values = getattr(self, name)
            require(len(values) == len(self.times), f"guidance {name}", values, f"{len(self.times)} values, as times")

    def at(self, t: float) -> tuple[float, float]:
        """Scales (previous, text) of a chunk at time t: those of the last range that begins before t."""
        require_finite("t", t, minimum=0, maximum=1)
        index = bisect_left([time - TIME_TOLERANCE for time in self.times], t) - 1
        return self.previous[index], self.text[index]


def guide(alone: Tensor, previous: Tensor, text: Tensor, scales: tuple[float, float]) -> Tensor:
    """``(1 - a) alone + (a - b) previous + b text`` with scales ``(a, b)``.

    alone: the chunk sees neither earlier chunks nor text; previous: it sees earlier chunks; text: both.
    """
    a, b = scales
    return (1 - a) * alone + (a - b) * previous + b * text


def needs_alone(scales: tuple[float, float]) -> bool:
    """Whether :func:`guide` has a use for the forward without earlier chunks."""
    return scales[0] != 1


def is_nearly_clean(t: float, threshold: float = NEARLY_CLEAN_TIME) -> bool:
    """Whether the oldest chunk of the window gets a second forward in which it sees only itself (distilled weights).

    t at the precision the schedule is computed in: 0.3 in fp32 is above 0.3.
    """
    return t > threshold


def mix_nearly_clean(previous: Tensor, alone: Tensor, share: float = PREVIOUS_SHARE) -> Tensor:
    """``share`` of the velocity that saw the earlier chunks, the rest of the one that saw only itself."""
    return share * previous + (1 - share) * alone


def visible_chunks(chunk: int, step: int, steps: int, ranges: Sequence[int]) -> range:
    """Chunks that a chunk at its own step may attend to, itself included.

    ranges: how many, per equal part of the steps, noise first (5, 4, 3, 2 as released); empty for all.
    """
    require_count("step", step, minimum=0, maximum=steps - 1)
    if not ranges:
        return range(0, chunk + 1)
    require(steps % len(ranges) == 0, "K/V ranges", tuple(ranges), f"a number of entries that divides {steps} steps")
    require(all(count >= 1 for count in ranges), "K/V ranges", tuple(ranges), "whole numbers >= 1")
    count = ranges[step // (steps // len(ranges))]
    return range(max(0, chunk + 1 - count), chunk + 1)


def visible_to_clean(chunk: int, ranges: Sequence[int], clean_range: int | None = None, *, given: bool) -> range:
    """Chunks that a clean chunk, given or finished, attends to while its K/V is written, itself included.

    ``clean_range`` of them: with ``ranges`` always, without for given ones alone, as in the original. None is the
    released setting: one with ranges; without, all for finished and eight for given ones.
    """
    if not ranges and not given:
        return range(0, chunk + 1)
    if clean_range is None:
        clean_range = CLEAN_RANGE if ranges else GIVEN_RANGE
    require_count("clean_range", clean_range, minimum=1)
    return range(max(0, chunk + 1 - clean_range), chunk + 1)
