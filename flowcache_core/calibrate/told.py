"""What was found, in sentences: for the command line and for the node."""

from __future__ import annotations

from .choose import SHARES, Choice, Chooser, Target
from .tables import Split

PROMISE = "Expected dB order the lists of one model; how high they are was measured on the bundled models only."


def steps_of(split: Split, steps: int) -> str:
    return f"{split.first} of {steps} steps computed in the first chunk and {split.later} in every other"


def outcome(target: Target, choice: Choice, chooser: Chooser, seconds: float | None) -> str:
    """What was chosen, or that the target cannot be met and what is nearest. seconds: of one computed step."""
    passes = len(choice.policy.computed) + chooser.extra_passes
    found = f"{steps_of(choice.split, chooser.steps)}: {choice.share:.0%} of all, "
    found += f"{speed_up(chooser, choice.share):.1f} times as fast, about {choice.expected:.0f} dB expected"
    if seconds is not None:
        found += f", {passes * seconds:.2f} s per later chunk"
    if choice.met:
        return found
    ((name, value),) = ((name, value) for name, value in vars(target).items() if value is not None)
    return f"{name.replace('_', '-')} {value:g} cannot be met; the nearest is {found}"


def speed_up(chooser: Chooser, share: float) -> float:
    """Of the time in the model, with the passes that reuse cannot spare."""
    steps, passes = chooser.steps, chooser.extra_passes
    return (steps + passes) / (share * steps + passes)


def ways(chooser: Chooser) -> str:
    """A line for each of some shares: what it computes, how fast it is, and what is expected of it."""
    full = chooser.length * chooser.steps
    lines = ["computed  first chunk  later chunks  times as fast  expected dB"]
    for way in dict.fromkeys(chooser.best(max(chooser.least, round(share * full))) for share in SHARES):
        share = chooser.share(way)
        lines.append(
            f"{share:8.0%}  {way.first:11}  {way.later:12}  {speed_up(chooser, share):13.1f}  {chooser.psnr(way):11.0f}"
        )
    return "\n".join(lines)


def preset_text(choice: Choice, chooser: Chooser) -> str:
    return f"Recorded: {steps_of(choice.split, chooser.steps)}; about {choice.expected:.0f} dB expected."
