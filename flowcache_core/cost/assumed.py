"""What is counted where a policy's decisions depend on values that nobody knows before the run."""

from __future__ import annotations

from ..errors import require
from ..presets import Preset
from ..reuse.base import ReusePolicy
from ..reuse.motion import Motion
from ..reuse.partial_schedule import PartialSchedule
from ..reuse.schedule import StaticSchedule, spread


def counted_policy(preset: Preset, steps: int, computed: int | None) -> ReusePolicy:
    """The preset's policy, or, where it looks at values, a schedule with as many computed steps."""
    if computed is None and preset.policy.content_free and not preset.policy.reads_model:
        return preset.policy
    wanted = counted_steps(preset, steps, computed)
    accepted = f"--computed N: how many of {steps} steps policy {preset.policy.name} computes depends on the video"
    require(wanted is not None, "computed", None, accepted)
    warmup, policy = preset.policy.warmup_steps, preset.policy
    table = spread(int(wanted or 0), steps, warmup)
    whole = [step for number, step in enumerate(table) if is_whole(policy, number, step, steps)]
    if not isinstance(policy, Motion) or len(whole) == len(table):
        return StaticSchedule(warmup_steps=warmup, computed=table)
    partial = tuple(step for step in table if step not in whole)
    share = mean_weight(policy)
    return PartialSchedule(
        warmup_steps=warmup, computed=tuple(whole), partial=partial, share=share, chosen_by="motion", always_last=False
    )


def counted_steps(preset: Preset, steps: int, computed: int | None) -> int | None:
    """Steps of a chunk of which something is computed."""
    if computed is None and isinstance(preset.policy, Motion) and preset.policy.share:
        return steps
    return computed if computed is not None else preset.computed_steps


def is_whole(policy: ReusePolicy, number: int, step: int, steps: int) -> bool:
    """Whether the ``number``-th computed step is whole, as far as that follows from the settings."""
    if not isinstance(policy, Motion) or policy.floor == 1:
        return True
    uniform = number < policy.warmup_steps + policy.uniform_updates or step < policy.uniform_steps
    return uniform or (policy.always_last and step == steps - 1)


def mean_weight(policy: Motion) -> float:
    """The share of its tokens that a step in part is taken to compute: its mean weight."""
    return policy.computed_share or (1 + policy.floor) / 2


def assumption(preset: Preset, steps: int, computed: int | None, whole_from: int | None = None) -> str | None:
    """What a count of steps in part assumes, in a sentence; None where nothing had to be. whole_from: see
    :attr:`.shapes.ModelShape.whole_from`.
    """
    policy, counted = preset.policy, counted_policy(preset, steps, computed)
    if not isinstance(policy, Motion) or not isinstance(counted, PartialSchedule):
        return None
    even = f"weights spread evenly from {policy.floor:g} to 1"
    why = f"fixed_share {policy.share:g}" if policy.share else even
    part = [step for step in counted.partial if whole_from is None or step < whole_from]
    if not part:
        return None
    whole = len(counted.computed) + len(counted.partial) - len(part)
    return (
        f"assumed: {whole} steps whole and {len(part)} in part at {counted.share:.0%} of the tokens ({why}); "
        "which tokens a run computes depends on the video"
    )
