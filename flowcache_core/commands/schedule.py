"""``python -m flowcache_core schedule``: the steps of a chunk that a preset computes, where that is known in advance.

The time distance does not look at the video, so with the model's weights it is a table, the same for every chunk,
prompt and seed. Fixed schedules need no weights. Policies that look at the latents have no such table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..denoiser import ChunkInput
from ..errors import require
from ..families import FAMILIES
from ..plan.base import Chunk
from ..presets import Preset, kind_of, load_preset, model_file, models
from ..reuse.base import Decision, PolicyState
from ..reuse.build import policy_from_text
from ..schedule import Schedule
from .arguments import Parser
from .cost import POLICY


def parser() -> argparse.ArgumentParser:
    p = Parser("schedule", description="The steps of a chunk that a preset computes.")
    p.add_argument("--model", required=True, help=", ".join(with_a_family()))
    p.add_argument("--preset", default="vanilla", help="a preset of that model (default: %(default)s)")
    p.add_argument("--policy", help=POLICY)
    p.add_argument("--weights", type=Path, help="the model's file or folder: what the time distance is measured on")
    p.add_argument("--steps", type=int, help="denoising steps of a chunk (default: the model's published number)")
    p.add_argument("--shift", type=float, help="timestep shift (default: the published one)")
    p.add_argument("--rescale", action="store_true", help="stretch a table made for another number of steps or shift")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    return p


def with_a_family() -> list[str]:
    """Models whose timesteps and time modulation are known here."""
    return [name for name in models() if kind_of(name) is not None]


@dataclass(frozen=True)
class StepTable:
    """Every own step of a chunk with its timestep and decision."""

    schedule: Schedule
    decisions: tuple[Decision, ...]

    @property
    def computed(self) -> tuple[int, ...]:
        return tuple(step for step, decision in enumerate(self.decisions) if not decision.reuses)

    def __str__(self) -> str:
        lines = ["step  timestep  action   distance  accumulated  reason"]
        for step, (t, d) in enumerate(zip(self.schedule.timesteps, self.decisions, strict=True)):
            distance = "" if d.distance is None else f"{d.distance:.4f}"
            accumulated = "" if d.accumulated is None else f"{d.accumulated:.4f}"
            lines.append(f"{step:4}  {t:8g}  {d.action:7}  {distance:>8}  {accumulated:>11}  {d.reason}")
        count = len(self.computed)
        return "\n".join([*lines, f"{count} of {len(self.decisions)} computed: {', '.join(map(str, self.computed))}"])


def step_table(state: PolicyState) -> StepTable:
    """One chunk's way through a policy that does not look at latents."""
    schedule, nothing = state.schedule, torch.empty(0)
    items = [ChunkInput(Chunk(0, 0, 1), i, schedule.sigmas[i], t, nothing) for i, t in enumerate(schedule.timesteps)]
    return StepTable(schedule, tuple(state.decide([item])[0] for item in items))


def needs_weights(preset: Preset) -> bool:
    """Whether the table depends on the model; SettingError when it depends on the video."""
    accepted = "one whose steps do not depend on the video: no reuse, a schedule, or the distance time"
    require(preset.policy.content_free, "preset", preset.name, accepted)
    return preset.policy.reads_model


def evaluate(options: argparse.Namespace) -> tuple[dict[str, Any], StepTable | None]:
    """The command's result as ``--json`` prints it, and the table when there is one."""
    require(options.model in with_a_family(), "model", options.model, ", ".join(with_a_family()))
    preset, run = load_preset(options.model, options.preset), model_file(options.model)["run"]
    if options.policy is not None:
        preset = preset.with_policy(policy_from_text(options.policy))
    steps = run["steps"] if options.steps is None else options.steps
    shift, family = run.get("shift") if options.shift is None else options.shift, FAMILIES[kind_of(options.model) or ""]
    if options.shift is not None:
        accepted = "none: the noise levels of this model are a curve of their own"
        require("shift" in run, "shift", options.shift, accepted)
    schedule = family.schedule(steps, shift or 1.0)
    preset, warning = preset.fit(steps, shift, rescale=options.rescale)
    preset.policy.check(steps)
    measured = needs_weights(preset)
    result: dict[str, Any] = {
        "model": options.model,
        "preset": preset.name,
        "steps": schedule.steps,
        "warning": warning,
    }
    if measured and options.weights is None:
        as_published = (steps, shift) == (run["steps"], run.get("shift"))
        published = preset.computed_steps if as_published else None
        return {**result, "computed_steps": published, "computed": None, "measured": False}, None
    if measured:
        model = family.load(options.weights)
        shape, dim = model_file(options.model)["shape"], model.config.dim
        require(dim == shape["dim"], "weights", f"a model of dim {dim}", f"the {options.model} of dim {shape['dim']}")
        table = step_table(preset.policy.begin(schedule, family.view(model)))
    else:
        table = step_table(preset.policy.begin(schedule, None))  # type: ignore[arg-type]
    result |= {"computed_steps": len(table.computed), "computed": list(table.computed), "measured": measured}
    return result, table


def as_text(result: dict[str, Any], table: StepTable | None) -> str:
    head = f"{result['model']}, preset {result['preset']}, {result['steps']} steps"
    if table is not None:
        source = "measured on the weights given" if result["measured"] else "fixed by the preset, weights play no part"
        warning = "" if result["warning"] is None else f"warning: {result['warning']}\n"
        return f"{head} ({source})\n{warning}{table}"
    count = result["computed_steps"]
    needs = "Which steps those are depends on the model's time modulation: give its weights with --weights FILE."
    if count is None:
        return f"{head}: no number of computed steps is published for it.\n{needs}"
    inferred = "(inferred from the published FLOPs, not measured here)"
    return f"{head}: {count} of {result['steps']} steps computed {inferred}.\n{needs}"


def main(argv: Sequence[str]) -> int:
    """Print the table. Raises SettingError for settings and files that cannot work."""
    options = parser().parse_args(argv)
    with torch.no_grad():
        result, table = evaluate(options)
    print(json.dumps(result) if options.json else as_text(result, table))
    return 0
