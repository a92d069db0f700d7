"""The preset ``auto``: lists of steps for whatever run begins, from the user's own presets and those of the pack.

It refuses nothing. Where no list is for such a run, the nearest one is stretched, which is said; where there is nothing
to reuse, that is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache

from ..errors import require_finite
from ..reuse.base import ReusePolicy
from ..reuse.never import Never
from ..reuse.quantity import Quantity, Velocity
from ..reuse.schedule import StaticSchedule, stretch
from ..schedule import Schedule, shift_of
from . import Preset, load_preset, model_file, models

NAME = "auto"
FEWEST_STEPS = 8  # below, nearly every step is needed
LEAST, MOST = 0.15, 0.6  # computed steps between which the slider goes: less changes the video, more saves little
SAME = 0.01  # of a shift, relative; of noise levels, which hosts take from a table of 1000


@dataclass(frozen=True)
class Run:
    """What is known of a run when it begins, or before (None, "").

    architecture: as :func:`..architecture.architecture_of` has it. model: name of its file. chunks: that are denoised;
    begins: whether the first of them begins the video.
    """

    steps: int
    schedule: Schedule | None = None
    architecture: str = ""
    model: str = ""
    guidance: float | None = None
    solver: str = ""
    plan: str = ""
    chunks: int = 4
    begins: bool = True

    @property
    def shift(self) -> float | None:
        return None if self.schedule is None else shift_of(self.schedule)

    @property
    def title(self) -> str:
        """Such as "30 steps at shift 5"."""
        return f"{self.steps} steps" + ("" if self.shift is None else f" at shift {self.shift:.3g}")


@dataclass(frozen=True)
class Chosen:
    """source: the preset that the lists are of, None where nothing is reused. notes: sentences on what was taken."""

    policy: ReusePolicy
    quantity: Quantity
    name: str
    source: Preset | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Offer:
    """One preset with one of its lists. title: as the node lists it; of lists that no entry stands for, the model and
    the share. architecture, file: of the model; no file where the architecture tells. own: the user's.
    """

    title: str
    preset: Preset
    policy: StaticSchedule
    quantity: Quantity
    architecture: str
    own: bool
    file: str = ""

    @property
    def steps(self) -> int:
        assert self.preset.requires is not None
        return int(self.preset.requires["steps"])

    def share(self, run: Run) -> float:
        """Of the steps of ``run`` that it computes, once stretched to them."""
        first, later = self.policy.first or self.policy.computed, self.policy.computed
        chunks = max(1, run.chunks)
        begins = int(run.begins)
        return (begins * len(first) + (chunks - begins) * len(later)) / (chunks * self.steps)

    def of_model(self, run: Run) -> bool:
        """Whether it is of the model that runs, or of one of the same architecture where files do not tell."""
        same = not run.architecture or self.architecture == run.architecture
        return same and (self.own or not self.file or not run.model or self.file == run.model)

    def of_other_file(self, run: Run) -> bool:
        """Whether it is the user's, made from another file of the same architecture."""
        return self.own and run.model != "" and self.architecture != "" and self.preset.model != run.model

    def fits(self, run: Run) -> bool:
        """Whether it was made for runs of this model at these noise levels."""
        return self.of_model(run) and self.steps == run.steps and self.off(run) <= SAME

    def off(self, run: Run) -> float:
        """How far its noise levels are from those of ``run``; 0 where either is not known."""
        wanted = (self.preset.requires or {}).get("shift")
        if wanted is not None and run.shift is not None:
            return abs(math.log(run.shift / wanted))
        if self.preset.sigmas and run.schedule is not None and self.steps == run.steps:
            return max(abs(a - b) for a, b in zip(self.preset.sigmas, run.schedule.sigmas, strict=True))
        return 1.0 if wanted is not None and run.schedule is not None else 0.0

    def distance(self, run: Run) -> tuple[float, ...]:
        """Least for the lists that are most likely to do: those that fit, then those of the model, of both the user's
        own first; then by number of steps, noise levels, and what the runs they were made from were like.
        """
        preset = self.preset
        unlike = [run.solver and preset.solver and preset.solver != run.solver]
        unlike += [run.plan and preset.plan and preset.plan != run.plan]
        guided = 0.0 if None in (preset.guidance, run.guidance) else abs(preset.guidance - run.guidance)  # type: ignore[operator]
        return (
            not self.fits(run),
            not self.of_model(run),
            not (self.own and self.of_model(run)),
            *apart(self.architecture, run.architecture),
            round(abs(math.log(self.steps / run.steps)), 3),
            round(self.off(run), 2),
            self.of_other_file(run),
            sum(map(bool, unlike)),
            guided,
        )


def choose(run: Run, fidelity: float, own: Iterable[Preset] = ()) -> Chosen:
    """Lists for ``run``. fidelity: from 0, the fewest computed steps that there is a list for, to 1, the most; never
    beyond 15 and 60 % where there are others. own: the user's presets. SettingError for a fidelity beyond 0 and 1.
    """
    require_finite("fidelity", fidelity, minimum=0.0, maximum=1.0)
    if run.steps < FEWEST_STEPS:
        note = f"nothing to reuse at {run.steps} steps, every one is needed; KV Cache Compressor saves memory"
        return Chosen(Never(), Velocity(), NAME, None, (note,))
    nearest = best(run, [*offers_of(own), *shipped()])
    taken = at(fidelity, nearest, run)
    share = "" if taken.own or ": " in taken.title else f", {taken.share(run):.0%}"
    name, quantity = f"{NAME} ({taken.title}{share})", taken.quantity
    if taken.fits(run):
        unlike = unlike_notes(taken, run)
        curve = () if taken.of_other_file(run) else taken.preset.curve
        count = len(taken.policy.computed)
        source = replace(taken.preset, policy=taken.policy, quantity=quantity, computed_steps=count, curve=curve)
        return Chosen(taken.policy, quantity, name, source, unlike)
    policy = stretched(taken, run.steps)
    source = replace(
        taken.preset,
        policy=policy,
        quantity=quantity,
        computed_steps=len(policy.computed),
        requires=None,
        curve=(),
        architecture="",
        sigmas=(),
    )
    return Chosen(policy, quantity, name, source, (far_note(taken, run),))


def at(fidelity: float, offers: Iterable[Offer], run: Run) -> Offer:
    """The one whose computed share is nearest to the slider's, which is even in ratios."""
    pairs = sorted(((offer.share(run), offer) for offer in offers), key=lambda pair: pair[0])
    low, high = (min(max(share, LEAST), MOST) for share in (pairs[0][0], pairs[-1][0]))
    wanted = low ** (1 - fidelity) * high**fidelity
    return min(pairs, key=lambda pair: abs(math.log(pair[0] / wanted)))[1]


def best(run: Run, offers: Iterable[Offer]) -> list[Offer]:
    """The offers of the least distance: one preset's lists, or those of several that are equally near."""
    ranked = [(offer.distance(run), offer) for offer in offers]
    least = min(distance for distance, _ in ranked)
    return [offer for distance, offer in ranked if distance == least]


def nearest_title(run: Run, own: Iterable[Preset] = ()) -> str | None:
    """The preset, of those with fixed lists, that fits ``run``, as the node lists it; None where none does."""
    entries = (offer for offer in [*offers_of(own), *shipped()] if offer.policy == offer.preset.policy)
    fitting = [offer for offer in entries if offer.fits(run)]
    return min(fitting, key=lambda offer: offer.distance(run)).title if fitting else None


def stretched(offer: Offer, steps: int) -> StaticSchedule:
    policy = offer.policy
    if offer.steps == steps:
        return policy
    first = stretch(policy.first, offer.steps, steps) if policy.first else ()
    return replace(policy, computed=stretch(policy.computed, offer.steps, steps), first=first)


def far_note(offer: Offer, run: Run) -> str:
    """What was taken in place of a list that fits."""
    requires = offer.preset.requires or {}
    shift = "" if "shift" not in requires else f" at shift {requires['shift']:g}"
    here = f"{run.title} of {run.model or run.architecture or 'this model'}"
    return (
        f"no list is calibrated for {here}: the nearest is taken, {offer.title}, made for {offer.steps} steps{shift}; "
        "its quality here is not measured (FlowCache Calibrate makes a list for this model from one run)"
    )


def unlike_notes(offer: Offer, run: Run) -> tuple[str, ...]:
    """What else is not as it was when the list was made; the list holds, the expected dB may not."""
    preset, found = offer.preset, []
    if offer.of_other_file(run):
        found.append(f"on {preset.model}, and this is {run.model}")
    if far_guidance(preset.guidance, run.guidance):
        found.append(f"at guidance {preset.guidance:g}, and this run has {run.guidance:g}")
    if preset.solver and run.solver and preset.solver != run.solver:
        found.append(f"with solver {preset.solver}, and this run has {run.solver}")
    return (f"preset {offer.title} was made {'; '.join(found)}",) if found else ()


def far_guidance(one: float | None, other: float | None) -> bool:
    """More than twice or less than half as strong; at 1 and below there is none."""
    if one is None or other is None:
        return False
    least, most = sorted((max(1.0, one), max(1.0, other)))
    return most > 2 * least


def apart(one: str, other: str) -> tuple[float, float]:
    """(whether two architectures are of different families, how many times as wide the wider is, as a logarithm)."""
    (family, width), (second, wide) = sizes(one), sizes(other)
    if not one or not other:
        return 0.0, 0.0
    return float(family != second), round(abs(math.log(width / wide)), 3)


def sizes(architecture: str) -> tuple[str, float]:
    family, *rest = architecture.split(", ")
    width = rest[0].partition(" ")[0] if rest else ""
    return family, float(width) if width.isdecimal() and int(width) else 1.0


def offers_of(presets: Iterable[Preset]) -> Iterator[Offer]:
    """The user's own presets; those without fixed lists are none to take for another run."""
    for preset in presets:
        title = f"my: {preset.name}"
        yield from (Offer(title, preset, *lists, preset.architecture, True) for lists in lists_of(preset))


@cache
def shipped() -> tuple[Offer, ...]:
    """Of every preset of the pack with fixed lists: first the entries, then what else their curves state."""
    entries: dict[tuple[str, StaticSchedule], Offer] = {}
    others: dict[tuple[str, StaticSchedule], Offer] = {}
    for model in models():
        content = model_file(model)
        architecture, file = content.get("architecture", ""), content.get("file", "")
        if shape := content.get("shape"):
            architecture = f"{shape['kind']}, {shape['dim']} wide, {shape['layers']} layers"
        for name in content["presets"]:
            preset = load_preset(model, name)
            for policy, quantity in lists_of(preset):
                entry = policy == preset.policy
                title = f"{model}: {name}" if entry else model
                offer = Offer(title, preset, policy, quantity, architecture, False, file)
                (entries if entry else others).setdefault((model, policy), offer)
    return (*entries.values(), *(offer for key, offer in others.items() if key not in entries))


def lists_of(preset: Preset) -> Iterator[tuple[StaticSchedule, Quantity]]:
    """A preset's own lists, then those of its curve, each with what its reused steps take; none where it has no fixed
    lists or says not what they are for.
    """
    own = preset.policy
    if not isinstance(own, StaticSchedule) or preset.requires is None:
        return
    yield own, preset.quantity
    for point in preset.curve:
        first, later = point.lists
        if later:
            yield replace(own, first=first, computed=later), point.quantity or preset.quantity
