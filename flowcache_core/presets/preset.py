"""One preset: what a run reuses, what runs it is for, and what is known of its quality."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import require
from ..kv.settings import KVSettings
from ..report.events import RunStarted
from ..reuse.base import ReusePolicy
from ..reuse.build import build_quantity
from ..reuse.quantity import Quantity
from ..reuse.schedule import StaticSchedule, stretch


@dataclass(frozen=True)
class CurvePoint:
    """One schedule of a curve. share: computed steps over all steps, of the first and of every later chunk. lists: the
    steps themselves, of the first chunk and of the later ones; empty where the curve does not state them. quantity:
    what reused steps take, None for what the preset's own do.
    """

    first: float
    later: float
    psnr: float
    lists: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    quantity: Quantity | None = None

    @classmethod
    def of(cls, point: Mapping[str, Any]) -> CurvePoint:
        share, lists = point["share"], (tuple(point.get("first", ())), tuple(point.get("computed", ())))
        quantity = build_quantity(point["quantity"]) if "quantity" in point else None
        return cls(point.get("first_share", share), point.get("later_share", share), point["psnr"], lists, quantity)

    def share(self, run: RunStarted) -> float:
        """Share of the steps that this schedule computes in ``run``: the more chunks, the less the first one counts."""
        chunks = run.chunks - run.prefix_chunks
        first = 0 if run.prefix_chunks else 1
        return (first * self.first + (chunks - first) * self.later) / chunks


@dataclass(frozen=True)
class Preset:
    """One row of a model's file.

    attention: the pattern the run uses. computed_steps: how many of a chunk's own steps are computed where that is
    published or calibrated (the cost model counts with it), None where it depends on the video. requires: what the runs
    are like that it is for: ``steps``, the ``shift`` of a model that has one, ``guidance`` where it counts. curve: what
    the calibration measured, at ``guidance``, or (not ``measured``) what a recording lets expect. architecture: of the
    transformer it was recorded on, "" where that is not noted. sigmas: noise levels of the runs it is for, where no
    shift describes them. kv: what a published run kept of its finished chunks, None where it kept all or the row says
    nothing. solver, plan: of the runs that it was made from, "" where they are not noted.
    """

    model: str
    name: str
    text: str
    policy: ReusePolicy
    quantity: Quantity
    attention: str = "block-causal"
    computed_steps: int | None = None
    requires: Mapping[str, float] | None = None
    curve: tuple[CurvePoint, ...] = ()
    guidance: float | None = None
    architecture: str = ""
    sigmas: tuple[float, ...] = ()
    kv: KVSettings | None = None
    measured: bool = True
    solver: str = ""
    plan: str = ""

    def with_policy(self, policy: ReusePolicy) -> Preset:
        """The same run under another policy; nothing that was measured of this one holds for it."""
        return replace(self, policy=policy, computed_steps=None, requires=None, curve=())

    def fit(
        self, steps: int, shift: float | None = None, guidance: float | None = None, *, rescale: bool = False
    ) -> tuple[Preset, str | None]:
        """This preset for a run of ``steps`` steps (and ``shift`` and ``guidance``, where they are known).

        A preset fits the runs that it is made for. For others it is refused with a SettingError, or with ``rescale``
        its table is stretched; the second value then says what changed.
        """
        if self.requires is None:
            return self, None
        made_for, given = int(self.requires["steps"]), f"{steps} steps"
        accepted, fits = f"{made_for} steps", steps == made_for
        for name, value in (("shift", shift), ("guidance", guidance)):
            if (wanted := self.requires.get(name)) is not None:
                accepted += f" at {name} {wanted:g}"
                if value is not None and not math.isclose(value, wanted, rel_tol=0.01):
                    given, fits = f"{given} at {name} {value:.3g}", False
        if fits:
            return self, None
        require(rescale, f"preset {self.name}", given, f"{accepted} (where there is a rescale option, with it)")
        warning, count = f"preset {self.name} was calibrated for {accepted}; ", self.computed_steps
        policy = self.policy
        if isinstance(policy, StaticSchedule):
            table = stretch(policy.computed, made_for, steps)
            first = stretch(policy.first, made_for, steps) if policy.first else ()
            policy, count = replace(policy, computed=table, first=first), len(table)
            warning += f"stretched to {given}: {count} steps computed, quality not known"
        else:
            warning += f"with {given} its quality is not known"
        return replace(self, policy=policy, computed_steps=count, requires=None, curve=()), warning

    def expected_psnr(self, share: float, run: RunStarted) -> float | None:
        """dB that the calibration found at this share of computed steps; None outside what it measured (blockwise)."""
        if self.measured and run.plan != "blockwise":
            return None
        points = sorted((point.share(run), point.psnr) for point in self.curve)
        for (low, below), (high, above) in zip(points, points[1:], strict=False):
            if low <= share <= high:
                return below + (above - below) * (share - low) / (high - low)
        return next((psnr for at, psnr in points if abs(at - share) < 0.01), None)

    def expectation(self, share: float, run: RunStarted, beside: Sequence[str] = ()) -> str | None:
        """Where ``run`` lies on the calibrated curve, in one sentence; None where nothing was measured. beside: what
        else makes its video another one than the uncached, in words; the calibration knows nothing of it."""
        expected = self.expected_psnr(share, run)
        if expected is None:
            return None
        source = "" if self.guidance is None else f" (median, calibrated at guidance {self.guidance:g})"
        if not self.measured:
            source = " (from its recording; not measured)"
        found = f"{share:.2f} of the steps computed; expected {expected:.0f} dB on this model{source}"
        return f"{found}, from reuse alone: {' and '.join(beside)} not counted" if beside else found
