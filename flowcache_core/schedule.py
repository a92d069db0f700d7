"""Noise levels of one chunk's steps: what the solver integrates over and what the model is told."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import SettingError, require, require_count, require_finite
from .fields import require_types

# Denoising steps of one chunk. Noise levels are told to models in thousandths; ten times finer is beyond any use.
MOST_STEPS = 10_000


@dataclass(frozen=True)
class Schedule:
    """``sigmas`` has N + 1 falling values (1 = noise, 0 = clean); ``timesteps`` the N values fed to the model.

    clean_time, noise_time: what the model is told at sigma 0 and 1, in its own unit of time.
    """

    sigmas: tuple[float, ...]
    timesteps: tuple[float, ...]
    clean_time: float = 0.0
    noise_time: float = 1000.0

    def __post_init__(self) -> None:
        require_types(self)
        require_count("schedule.steps", len(self.timesteps), minimum=1, maximum=MOST_STEPS)
        count = len(self.sigmas)
        require(count == len(self.timesteps) + 1, "schedule.sigmas", count, "one more than timesteps")
        falling = all(a > b >= 0 for a, b in zip(self.sigmas, self.sigmas[1:], strict=False))
        require(falling and self.sigmas[0] <= 1, "schedule.sigmas", self.sigmas, "strictly falling values from 1 to 0")

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def time(self, sigma: float) -> float:
        """What the model is told at a noise level that is no step's own, such as that of a noisy prefix."""
        return self.clean_time + sigma * (self.noise_time - self.clean_time)


def shift_sigma(sigma: float, shift: float) -> float:
    """Move a flow-matching noise level towards noise (resolution-dependent shift of arXiv 2403.03206)."""
    # Written so that 1 stays exactly 1 for every shift.
    return shift * sigma / (shift * sigma + (1 - sigma))


def require_shift(shift: float) -> None:
    require_finite("shift", shift, minimum=0.01, maximum=100)


def shifted(steps: int, shift: float, start: float = 1.0) -> Schedule:
    """Flow matching: sigmas fall evenly from ``start`` to 0 and are then shifted; timesteps are ``1000 * sigma``.

    ``start`` below 1 (before the shift) begins from partly denoised latents.
    """
    require_count("steps", steps, minimum=1, maximum=MOST_STEPS)
    require_shift(shift)
    require_finite("start", start, minimum=1e-3, maximum=1)
    sigmas = [shift_sigma(start * (1 - k / steps), shift) for k in range(steps + 1)]
    return Schedule(tuple(sigmas), tuple(1000 * sigma for sigma in sigmas[:-1]))


def shift_of(schedule: Schedule) -> float | None:
    """The shift of an evenly spaced schedule that ends clean (:func:`shifted`, :func:`skyreels`); None for others.

    ``1 / sigma - 1`` of the k-th of N steps is linear in ``N / (N - k)``, with the offset ``-1 / shift`` whatever level
    the schedule starts from. Exact to 1 %: hosts take their sigmas from a table of 1000, which is coarse at the end.
    """
    steps, sigmas = schedule.steps, schedule.sigmas
    if steps < 3 or sigmas[-1] > 0:
        return None
    x = [steps / (steps - k) for k in range(steps)]
    y = [1 / sigma - 1 for sigma in sigmas[:-1]]
    middle = steps // 2
    slope = (y[middle] - y[0]) / (x[middle] - x[0])
    offset = slope * x[0] - y[0]
    even = all(abs(slope * at - offset - value) <= 0.06 * value + 1e-3 for at, value in zip(x, y, strict=True))
    return 1 / offset if even and offset > 0 else None


def skyreels(steps: int, shift: float) -> Schedule:
    """SkyReels-V2: evenly from 0.999, shifted; timesteps are whole numbers, cut off rather than rounded."""
    require_count("steps", steps, minimum=1, maximum=MOST_STEPS)
    require_shift(shift)
    sigmas = [shift_sigma(0.999 * (1 - k / steps), shift) for k in range(steps)]
    return Schedule((*sigmas, 0.0), tuple(float(int(1000 * sigma)) for sigma in sigmas))


@dataclass(frozen=True)
class Shortcut:
    """MAGI-1 distilled to 12 steps: three steps per quarter of u.

    offsets: where they begin inside the quarter. intervals: their lengths in sixteenths of u.
    """

    offsets: tuple[float, float, float]
    intervals: tuple[int, int, int]


# Named after the resolution, in steps per whole range, of the three steps of a quarter.
SHORTCUTS = {
    "8,16,16": Shortcut((0.0, 0.125, 0.1875), (2, 1, 1)),
    "16,16,8": Shortcut((0.0, 0.0625, 0.125), (1, 1, 2)),
}


def require_shortcut(mode: str) -> Shortcut:
    require(isinstance(mode, str) and mode in SHORTCUTS, "shortcut_mode", mode, " or ".join(SHORTCUTS))
    return SHORTCUTS[mode]


def magi(steps: int, shortcut_mode: str = "8,16,16") -> Schedule:
    """MAGI-1: model time ``t = u^2 / (3 - 2 u^2)`` (0 = noise, 1 = clean), ``sigma = 1 - t``, timesteps are t itself.

    u rises evenly, except for 12 steps, where ``shortcut_mode`` says how each quarter is divided. t is rounded to
    float32, because the model compares it with thresholds (t > 0.3) that such a rounded value can pass.
    """
    require_count("steps", steps, minimum=1, maximum=MOST_STEPS)
    shortcut = require_shortcut(shortcut_mode)
    if steps == 12:
        rising = [quarter / 4 + offset for quarter in range(4) for offset in shortcut.offsets] + [1.0]
    else:
        rising = [k / steps for k in range(steps + 1)]
    times = [_float32(u * u / (3 - 2 * u * u)) for u in rising]
    return Schedule(tuple(1 - t for t in times), tuple(times[:-1]), clean_time=1.0, noise_time=0.0)


def magi_distill_times(steps: int, shortcut_mode: str = "8,16,16") -> tuple[float, ...]:
    """What the distilled MAGI-1 embeds beside t at every step: half the steps a range of equal intervals would have."""
    require_count("steps", steps, minimum=1, maximum=MOST_STEPS)
    shortcut = require_shortcut(shortcut_mode)
    if steps == 12:
        return tuple(8 / interval for interval in shortcut.intervals) * 4
    return (steps / 2,) * steps


def from_sigmas(sigmas: Iterable[float]) -> Schedule:
    """A host's own sigmas; they may begin below 1 and end above 0 (a run split in two). Timesteps are ``1000 * sigma``.

    Raises SettingError that names the entry which is not a falling number from 1 to 0.
    """
    try:
        values = tuple(float(sigma) for sigma in sigmas)
    except (TypeError, ValueError, OverflowError) as error:
        raise SettingError("sigmas", sigmas, "a list of falling numbers from 1 to 0") from error
    require(len(values) >= 2, "sigmas", values, "at least two values")
    for index, sigma in enumerate(values):
        in_range = math.isfinite(sigma) and 0 <= sigma <= 1
        require(in_range, f"sigmas[{index}]", sigma, "a flow-matching noise level from 0 to 1")
        if index:
            before = values[index - 1]
            require(sigma < before, f"sigmas[{index}]", sigma, f"less than sigmas[{index - 1}] = {before}")
    return Schedule(values, tuple(1000 * sigma for sigma in values[:-1]))


def _float32(value: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded
