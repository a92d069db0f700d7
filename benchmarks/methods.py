"""Every way to save steps that the curves compare, each at several settings; ours first.

What of them is not as published: docs/reuse.md, "What others do".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, TypeVar

import torch

from flowcache_core.calibrate.runs import Pair, Setup
from flowcache_core.calibrate.tables import FORECAST, Proposal
from flowcache_core.commands.calibrate_thorough import shipped_name
from flowcache_core.denoiser import ChunkInput, ChunkOutput
from flowcache_core.engine import generate
from flowcache_core.engine.anchor import LowFrequencies
from flowcache_core.kv.cache import KVCache
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.guidance_refresh import GuidanceRefresh
from flowcache_core.presets import load_preset, model_file
from flowcache_core.report.refusing import refusing
from flowcache_core.reuse.barycentric import Barycentric
from flowcache_core.reuse.chebyshev import Chebyshev
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.distance import LatentDistance, PatchDistance, TimeDistance
from flowcache_core.reuse.easycache import EasyCache
from flowcache_core.reuse.forecast import Forecast, Offset, Taylor
from flowcache_core.reuse.front_loaded import FrontLoaded
from flowcache_core.reuse.interval import Interval
from flowcache_core.reuse.magcache import MagCache
from flowcache_core.reuse.motion import Motion
from flowcache_core.reuse.motion_reference import ReferenceMotion
from flowcache_core.reuse.published import Published
from flowcache_core.reuse.quantity import Residual, Velocity
from flowcache_core.reuse.schedule import StaticSchedule, spread
from flowcache_core.reuse.teacache import TeaCache
from flowcache_core.rows import Rows
from flowcache_core.solvers.euler import Euler
from flowcache_core.solvers.unipc import UniPC

from .mini_runs import Method, specimen

SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8)
SHIPPED = ("fast", "balanced", "slow")
T = TypeVar("T")


@dataclass(frozen=True)
class Subject:
    """What the methods are set up for. calibration: pairs that methods measure on before a run; few: three settings
    each instead of six, where a run is dear."""

    model: str
    setup: Setup
    calibration: Sequence[Pair]
    few: bool = False

    def some(self, values: Sequence[T]) -> Sequence[T]:
        """All of the settings, or every second one."""
        return values[::2] if self.few else values

    @property
    def shares(self) -> Sequence[float]:
        return (0.2, 0.3, 0.5) if self.few else SHARES

    @property
    def warmup(self) -> int:
        return min(5, max(1, self.setup.steps // 5))

    @property
    def fifth(self) -> int:
        """First steps that MagCache and EasyCache compute as published: 10 of 50."""
        return max(1, self.setup.steps // 5)


Family = Callable[[Subject], Iterator[Method]]


def methods(subject: Subject) -> Iterator[Method]:
    """Every method, in the order of :data:`FAMILIES`."""
    for family in FAMILIES:
        yield from family(subject)


def ours(subject: Subject) -> Iterator[Method]:
    steps, shift = subject.setup.steps, specimen(subject.model).model.shift
    for name in SHIPPED:
        preset, _ = load_preset(subject.model, shipped_name(name, steps)).fit(steps, shift)
        yield Method("ours (shipped)", name, {"policy": preset.policy, "quantity": preset.quantity})
    for share, found in () if subject.few else calibrated(subject.model, steps):
        yield Method("ours (calibrated)", f"{share:.0%}", {"policy": found.policy, "quantity": found.forecast})


def calibrated(model: str, steps: int) -> list[tuple[float, Proposal]]:
    """Share, lists and forecast of every point on the shipped presets' calibration curve."""
    row = model_file(model)["presets"][shipped_name(SHIPPED[0], steps)]
    curve = row["evidence"]["curve"]
    found = []
    for point in curve:
        lists = StaticSchedule(computed=tuple(point["computed"]), first=tuple(point["first"]), together=True)
        told = point.get("quantity", {})  # of curves measured before forecasts were decided between: the usual one
        forecast = Forecast(told["order"], correction=told["correction"]) if told else FORECAST
        found.append((point["share"], Proposal(lists, forecast)))
    return found


def by_rule(subject: Subject) -> Iterator[Method]:
    """Lists by rule with our corrected forecast, without a calibration, all with as many computed steps.

    One list for all chunks, spread evenly after five steps (the SkyReels presets up to 0.1), against twice as many in
    the first chunk, of which the early ones in a row or all spread evenly.
    """
    steps, chunks = subject.setup.steps, subject.setup.chunks
    for share in subject.shares:
        same = StaticSchedule(computed=spread(max(subject.warmup + 1, round(share * steps)), steps, subject.warmup))
        yield Method("even in every chunk, corrected", f"{share:.0%}", {"policy": same, "quantity": FORECAST})
        later = share * chunks / (chunks + 1)
        for name, lead in (("front-loaded first chunk", 0.4), ("longer first chunk", 0.0)):
            rule = FrontLoaded(share=later, first_share=min(1.0, 2 * later), lead=lead)
            yield Method(f"{name}, corrected", f"{share:.0%}", {"policy": rule, "quantity": FORECAST})


def fixed_intervals(subject: Subject) -> Iterator[Method]:
    for interval in subject.some((2, 3, 4, 5, 6, 8)):
        fixed = Interval(interval=interval, warmup_steps=2)
        yield Method("fixed interval, velocity", str(interval), {"policy": fixed, "quantity": Velocity()})
        for order in (1, 2):
            yield Method(f"fixed interval, taylor {order}", str(interval), {"policy": fixed, "quantity": Taylor(order)})


def fewer_steps(subject: Subject) -> Iterator[Method]:
    for share in subject.shares:
        fewer = max(2, round(share * subject.setup.steps))
        for solver in (Euler(), UniPC()):
            setup = replace(subject.setup, steps=fewer, solver=solver)
            yield Method(f"fewer steps, {solver.name}", str(fewer), setup=setup)


def forecasts(subject: Subject) -> Iterator[Method]:
    """BaryCache: equal spacing after three steps, two anchors. Spectrum: growing intervals and the Chebyshev fit."""
    for interval in subject.some((2, 3, 4, 5, 6, 8)):
        fixed = Interval(interval=interval, warmup_steps=3)
        for anchors in (2, 3):
            changes: dict[str, Any] = {"policy": fixed, "quantity": Barycentric(anchors)}
            yield Method(f"barycache, {anchors} anchors", str(interval), changes)
    for growth in subject.some((0.1, 0.2, 0.35, 0.75, 1.5, 3.0)):
        policy = Interval(interval=2, growth=growth, warmup_steps=subject.warmup)
        yield Method("spectrum (chebyshev)", f"{growth:g}", {"policy": policy, "quantity": Chebyshev()})
        mixed = {"policy": policy, "quantity": Chebyshev(blend=0.5)}
        yield Method("spectrum, half taylor", f"{growth:g}", mixed)


def published_lists(subject: Subject) -> Iterator[Method]:
    """Lists of the Golden Path study: with what they were searched for, and with our corrected forecast."""
    for count in (9, 13, 21):
        for name, quantity in (("budcache", Velocity()), ("shared", Taylor(1))):
            policy = Published(steps_of=f"{name} {count}")
            yield Method(f"published {name}, {quantity.name}", str(count), {"policy": policy, "quantity": quantity})
        for name in ("budcache", "meancache"):
            policy = Published(steps_of=f"{name} {count}")
            changes: dict[str, Any] = {"policy": policy, "quantity": FORECAST}
            yield Method(f"published {name}, corrected forecast", str(count), changes)


def guidance(subject: Subject) -> Iterator[Method]:
    """TRAC's idea on our lists: both branches at every second computed step only; low frequencies put back."""
    if subject.setup.guidance <= 1:
        return
    steps, shift = subject.setup.steps, specimen(subject.model).model.shift
    for name in SHIPPED:
        preset, _ = load_preset(subject.model, shipped_name(name, steps)).fit(steps, shift)
        shipped: dict[str, Any] = {"policy": preset.policy, "quantity": preset.quantity}
        yield Method("ours, guidance at every second", name, {**shipped, "kind": GuidanceRefresh})
        yield Method("ours, low frequencies put back", name, {**shipped, "anchor": LowFrequencies()})


def magcache(subject: Subject) -> Iterator[Method]:
    """With the first steps that all policies here compute, and with a fifth of all steps as published."""

    def settings(threshold: float, cap: int, warmup: int) -> dict[str, Any]:
        curve = magnitude_curve(subject)
        return {"policy": MagCache(threshold=threshold, max_reuses=cap, curve=curve, warmup_steps=warmup)}

    for threshold, cap in subject.some(((0.03, 2), (0.06, 3), (0.12, 4), (0.24, 6), (0.5, 8), (1.0, 12))):
        for name, warmup in (("magcache", subject.warmup), ("magcache as published", subject.fifth)):
            measured = partial(settings, threshold, cap, warmup)
            yield Method(name, f"{threshold:g}/{cap}", {"quantity": Residual()}, measured=measured)


@cache
def magnitude_curve(subject: Subject) -> tuple[float, ...]:
    """MagCache's offline curve on this model: mean |r_t| / |r_(t-1)| of the residual, from one uncached run."""
    of, setup, batch = specimen(subject.model), subject.setup, subject.calibration
    norms: list[float] = []

    class Measuring(WanDenoiser):
        def compute(
            self, item: ChunkInput, cache: KVCache, *, keep_residual: bool = False, rows: Rows | None = None
        ) -> ChunkOutput:
            output = super().compute(item, cache, keep_residual=True, rows=rows)
            if item.step < setup.steps and output.residual is not None:  # not the clean pass
                norms.append(output.residual.float().norm(dim=-1).mean().item())
            return output

    one = replace(setup, chunks=1)
    usual = of.denoiser([text for text, _ in batch], setup)
    denoiser = Measuring(usual.transformer, usual.prompts, usual.guidance)
    noise = torch.cat([of.noise(1, seed) for _, seed in batch])
    generate(denoiser, of.settings(one), noise, observe=refusing())
    return (1.0, *(b / a for a, b in zip(norms, norms[1:], strict=False)))


def motion(subject: Subject) -> Iterator[Method]:
    """MotionCache: after a uniform phase the tokens that move are computed, by the latents' distance."""
    for threshold in subject.some((0.03, 0.05, 0.08, 0.12, 0.2, 0.3)):
        policy = Motion(threshold=threshold, warmup_steps=subject.warmup, distance=LatentDistance())
        yield Method("motioncache", f"{threshold:g}", {"policy": policy, "quantity": Velocity()})
    # As published for SkyReels-V2, but for the polynomial, which was fitted to that model.
    published = load_preset("skyreels-v2-1.3b-540p", "reference-motion-slow")
    for threshold in subject.some((0.02, 0.05, 0.07, 0.1, 0.2, 0.4)):
        assert isinstance(published.policy, ReferenceMotion)
        rule = replace(published.policy, threshold=threshold, distance=TimeDistance())
        yield Method("motioncache as published", f"{threshold:g}", {"policy": rule, "quantity": published.quantity})


def thresholds(subject: Subject) -> Iterator[Method]:
    """Policies that look: TeaCache, the paper's Eq. 8 and EasyCache."""
    warm = subject.warmup
    for threshold in subject.some((0.02, 0.05, 0.07, 0.1, 0.2, 0.4)):
        teacache = TeaCache(threshold=threshold, warmup_steps=warm, distance=TimeDistance())
        yield Method("teacache, time", f"{threshold:g}", {"policy": teacache, "quantity": Residual()})
    for threshold in subject.some((0.03, 0.05, 0.08, 0.12, 0.2, 0.3)):
        eq8 = Chunkwise(threshold=threshold, warmup_steps=warm, distance=LatentDistance())
        yield Method("chunkwise (Eq. 8), latent", f"{threshold:g}", {"policy": eq8, "quantity": Velocity()})
        patch = replace(eq8, distance=PatchDistance())
        yield Method("chunkwise (Eq. 8), patch", f"{threshold:g}", {"policy": patch, "quantity": Residual()})
        for name, first in (("easycache", warm), ("easycache as published", subject.fifth)):
            easy = EasyCache(threshold=threshold, warmup_steps=first)
            yield Method(name, f"{threshold:g}", {"policy": easy, "quantity": Offset()})


FAMILIES: tuple[Family, ...] = (
    ours, by_rule, fixed_intervals, fewer_steps, forecasts, published_lists, guidance, motion, magcache, thresholds,
)  # fmt: skip
