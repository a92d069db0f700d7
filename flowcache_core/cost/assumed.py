"""What is counted where a policy's decisions depend on values that nobody knows before the run."""

from __future__ import annotations

from ..errors import require
from ..presets import Preset
from ..reuse.base import ReusePolicy
from ..reuse.schedule import StaticSchedule, spread


def counted_policy(preset: Preset, steps: int, computed: int | None) -> ReusePolicy:
    """The preset's policy, or, where it looks at values, a schedule with as many computed steps."""
    if computed is None and preset.policy.content_free and not preset.policy.reads_model:
        return preset.policy
    wanted = computed if computed is not None else preset.computed_steps
    accepted = f"--computed N: how many of {steps} steps {preset.name!r} computes depends on the video"
    require(wanted is not None, "computed", None, accepted)
    warmup = preset.policy.warmup_steps
    return StaticSchedule(warmup_steps=warmup, computed=spread(int(wanted or 0), steps, warmup))
