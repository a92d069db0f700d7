"""From a recording to lists: what is searched, how the first chunk's share is found, and what meets a target."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import require, require_finite
from ..reuse.schedule import StaticSchedule, in_step
from . import prior
from .recording import Facts, Recording
from .search import error_of
from .tables import FORECAST, Split, Tables, searched

SHARES = (0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8)


@dataclass(frozen=True)
class Target:
    """What a preset shall reach: exactly one of the fields.

    share: computed steps over all steps. speed_up: of the time in the model. seconds: per chunk, of the model alone.
    psnr: dB against the uncached video.
    """

    share: float | None = None
    speed_up: float | None = None
    seconds: float | None = None
    psnr: float | None = None

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if value is not None]
        require(len(given) == 1, "target", ", ".join(given) or "none", "one of share, speed-up, seconds and PSNR")
        limits = {"share": (0.0, 1.0), "speed_up": (1.0, 1000.0), "seconds": (0.0, 1e9), "psnr": (0.0, 100.0)}
        low, high = limits[given[0]]
        require_finite(f"target {given[0].replace('_', '-')}", getattr(self, given[0]), minimum=low, maximum=high)


@dataclass(frozen=True)
class Choice:
    """Lists for a target. met: False where it is only the nearest. expected: dB, see :meth:`Chooser.psnr`."""

    split: Split
    policy: StaticSchedule
    share: float
    expected: float
    met: bool

    def settings(self) -> dict[str, Any]:
        """The policy as a preset's row states it."""
        return policy_row(self.policy)


@dataclass(frozen=True)
class Chooser:
    """Finds lists for videos of ``chunks`` chunks (None: as long as the longest that was recorded).

    extra_passes: forwards per chunk that reuse cannot spare (a clean pass).
    """

    recording: Recording
    chunks: int | None = None
    extra_passes: int = 0

    @cached_property
    def tables(self) -> Tables:
        levels = self.recording.grams.levels
        reaches = [prior.FIRST.weights(levels), prior.LATER.weights(levels)]
        return searched(self.recording.grams, reaches, FORECAST, forecast_share=prior.FORECAST_SHARE)

    @property
    def steps(self) -> int:
        return self.recording.steps

    @property
    def length(self) -> int:
        return self.chunks or self.recording.chunks

    @cached_property
    def later(self) -> dict[int, float]:
        """Count -> error of what later chunks compute of it.

        Where chunks are in work side by side they compute at the same ticks (:func:`..reuse.schedule.in_step`), which
        takes another list than the searched one, and of as many steps only now and then: no other counts are offered.
        """
        found, levels = {}, self.recording.grams.levels
        gram, weights = self.recording.grams.tables()[1], prior.LATER.weights(levels)
        for count, own in self.tables.later.items():
            shared = in_step(count, self.steps, self.recording.facts.offset)
            if shared is None:
                found[count] = own.error
            elif len(shared) == count:
                found[count] = error_of(
                    gram,
                    levels,
                    shared,
                    FORECAST.order,
                    weights,
                    correction=FORECAST.correction,
                    forecast_share=prior.FORECAST_SHARE,
                )
        return found

    def error(self, way: Split) -> float:
        """Mean square error of the decoded video (0..1) as recording and prior have it."""
        return prior.video_error(self.tables.first[way.first].error, self.later[way.later], self.length)

    def psnr(self, way: Split) -> float:
        """Expected dB. It orders lists of one model; its level is that of the bundled models."""
        return prior.decibels(self.error(way))

    def share(self, way: Split) -> float:
        return way.total(self.length) / (self.length * self.steps)

    def best(self, total: int) -> Split:
        """The way with the least error that computes ``total`` steps in all, or up to ``length - 1`` fewer."""
        ways = [way for way in self.ways if total - self.length < way.total(self.length) <= total]
        accepted = f"{min(way.total(self.length) for way in self.ways)} or more"
        require(bool(ways), "computed steps in all", total, accepted)
        return min(ways, key=lambda way: (self.error(way), way.total(self.length)))

    @cached_property
    def ways(self) -> list[Split]:
        """Every split into a first chunk's count and a later one's that is no larger."""
        counts = sorted(self.tables.first)
        if self.length == 1:
            return [Split(count, count) for count in counts]
        return [Split(first, own) for first in counts for own in self.later if own <= first]

    def choose(self, target: Target, seconds_per_step: float | None = None) -> Choice:
        """The nearest to ``target``. seconds_per_step: of one computed step of a chunk on this machine."""
        everything = self.length * self.steps
        if target.psnr is not None:
            fit = [way for way in self.curve if self.psnr(way) >= target.psnr]
            return self.choice(fit[0] if fit else max(self.curve, key=self.psnr), met=bool(fit))
        if target.share is not None:
            wanted = target.share * everything
        elif target.speed_up is not None:
            passes = self.steps + self.extra_passes
            wanted = (passes / target.speed_up - self.extra_passes) * self.length
        else:
            accepted = "a recording whose steps were timed on this machine"
            require(seconds_per_step is not None, "target seconds", target.seconds, accepted)
            wanted = ((target.seconds or 0.0) / (seconds_per_step or 1.0) - self.extra_passes) * self.length
        total = round(min(max(wanted, self.least), everything))
        # Rounded down where a time is not to be passed; a share is met as nearly as whole steps allow.
        return self.choice(self.best(total), met=wanted >= self.least - 0.5)

    @property
    def least(self) -> int:
        return min(way.total(self.length) for way in self.ways)

    @cached_property
    def curve(self) -> list[Split]:
        """The best way for every number of computed steps in all, fewest first."""
        totals = sorted({way.total(self.length) for way in self.ways})
        return list(dict.fromkeys(self.best(total) for total in totals))

    def choice(self, way: Split, *, met: bool = True) -> Choice:
        return Choice(way, self.tables.policy(way), self.share(way), self.psnr(way), met)


def policy_row(policy: StaticSchedule) -> dict[str, Any]:
    """The policy as a preset's row states it."""
    return {"name": policy.name, "warmup_steps": 1, **lists_row(policy), "together": True}


def lists_row(policy: StaticSchedule) -> dict[str, list[int]]:
    return {"first": list(policy.first), "computed": list(policy.computed)}


def required(facts: Facts, steps: int) -> dict[str, Any]:
    """What a run must have for a preset to fit, as its row states it."""
    return {"requires": {"steps": steps} if facts.shift is None else {"steps": steps, "shift": facts.shift}}


def preset_row(chooser: Chooser, choice: Choice, text: str, **evidence: Any) -> dict[str, Any]:
    """A preset's row with what it is for and what it rests on: lists for the target, and for other shares, among which
    the slider of ``auto`` chooses. Nothing in it was measured: no ``curve``.
    """
    recording = chooser.recording
    facts, grams = recording.facts, recording.grams
    full = chooser.length * chooser.steps
    ways = dict.fromkeys(chooser.best(max(chooser.least, round(share * full))) for share in SHARES)
    expected = [
        {
            "share": round(chooser.share(way), 4),
            "first_share": way.first / chooser.steps,
            "later_share": way.later / chooser.steps,
            "psnr": round(chooser.psnr(way), 1),
            **lists_row(chooser.tables.policy(way)),
        }
        for way in ways
    ]
    return {
        "text": text,
        "policy": choice.settings(),
        "quantity": {"name": FORECAST.name, "order": FORECAST.order, "correction": FORECAST.correction},
        "computed_steps": len(choice.policy.computed),
        **required(facts, chooser.steps),
        "evidence": {
            "model": facts.model,
            "model_sha256": facts.sha256,
            "architecture": facts.architecture,
            **({"sigmas": [round(level, 6) for level in grams.levels]} if facts.shift is None else {}),
            "solver": facts.solver,
            "guidance": facts.guidance,
            "plan": facts.plan,
            "chunks": chooser.length,
            "recorded_chunks": {"first": grams.first.count, "later": grams.later.count, "begun": grams.begun},
            "sources": list(recording.sources),
            "expected": expected,
            **evidence,
        },
    }
