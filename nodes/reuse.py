"""FlowCache Chunkwise Reuse: MODEL in, MODEL out, with reuse settings on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..flowcache_core import presets
from ..flowcache_core.errors import SettingError
from ..flowcache_core.reuse import DISTANCES, POLICIES, QUANTITIES
from ..flowcache_core.reuse.build import build_policy, build_quantity
from .adapters.naming import CATEGORY, naming
from .adapters.run.settings import ReuseSettings, with_reuse
from .choices import MISSING, check

NAME = "FlowCache Chunkwise Reuse"
CUSTOM = "custom"
DEVICES = {"same as the model": None, "cpu": "cpu"}
_NOT_CHOSEN = ("never", "magcache", "interval")  # nothing to set; a curve or a number the node has no field for


def preset_rows() -> dict[str, tuple[str, str]]:
    """Name in the list -> (model, row), for every row that reuses something."""
    return {
        f"{model}: {name}": (model, name)
        for model in presets.models()
        for name, row in presets.model_file(model)["presets"].items()
        if row["policy"]["name"] != "never"
    }


def custom_inputs() -> list[io.Input]:
    policies = [name for name in POLICIES if name not in _NOT_CHOSEN]
    return [
        io.Combo.Input(
            "policy",
            options=policies,
            default="chunkwise",
            tooltip=(
                "chunkwise: every chunk decides for itself (FlowCache). teacache: one decision for all active chunks, "
                "the baseline. schedule: the fixed list in computed_steps."
            ),
        ),
        io.Float.Input(
            "threshold",
            default=0.1,
            min=0.0,
            max=100.0,
            step=0.001,
            round=0.0001,
            tooltip=(
                "Reuse while the distance accumulated since the last computed step stays within this. Higher is faster "
                "and less exact; 0 computes every step. Not used by the policy schedule."
            ),
        ),
        io.Int.Input(
            "warmup_steps",
            default=1,
            min=1,
            max=1000,
            tooltip="A chunk's first steps that are always computed. With 4 steps in all, 1 or 2; with 50, about 5.",
        ),
        io.Combo.Input(
            "distance",
            options=list(DISTANCES),
            default="latent",
            tooltip=(
                "What is compared between two steps: the noisy latents, their patch embedding, or the time modulation "
                "(TeaCache's, the same for every video). Not used by the policy schedule."
            ),
        ),
        io.Combo.Input(
            "quantity",
            options=list(QUANTITIES),
            default="velocity",
            tooltip=(
                "What a reused step takes from the last computed one: its velocity, its change of the latents, or what "
                "the transformer blocks added (needs more memory)."
            ),
        ),
        io.Int.Input(
            "max_reuses",
            default=0,
            min=0,
            max=1000,
            tooltip="The most steps in a row that one chunk may reuse; 0 for no limit.",
        ),
        io.Boolean.Input(
            "always_last",
            default=True,
            tooltip="Always compute a chunk's last step, so that the K/V it leaves behind is fresh.",
        ),
        io.Combo.Input(
            "cache_device",
            options=list(DEVICES),
            tooltip=(
                "Where what computed steps leave for reuse is kept: velocities, changes of the latents, and residuals,"
                " which are the largest. cpu saves graphics memory and costs the transfer."
            ),
            advanced=True,
        ),
        io.String.Input(
            "computed_steps",
            default="0",
            tooltip=(
                "Only for the policy schedule: a chunk's own steps that are computed, counted from 0, such as 0, 1,"
                " 2, 4."
            ),
            advanced=True,
        ),
        io.String.Input(
            "first_chunk_steps",
            default="",
            optional=True,  # workflows made before it have none
            tooltip=(
                "Only for the policy schedule: the same for the chunk that begins the video, which needs more computed"
                " steps than those that continue it. Empty: as all others."
            ),
            advanced=True,
        ),
        io.Boolean.Input(
            "last_tick",
            default=False,
            optional=True,
            tooltip=(
                "Compute the very last steps of the whole video, whatever else is set: what the published MAGI-1"
                " code does instead of always_last."
            ),
            advanced=True,
        ),
    ]


class ChunkwiseReuse(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        rows = [io.DynamicCombo.Option(name, []) for name in preset_rows()]
        return io.Schema(
            node_id="FlowCacheChunkwiseReuse",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Skips the model where a chunk hardly changes from one denoising step to the next and reuses what "
                "was computed before. Connect it before an AR video sampler."
            ),
            search_aliases=["teacache", "flowcache", "step cache", "easycache", "ar video", "speed up video"],
            inputs=[
                io.Model.Input("model", tooltip="The autoregressive video model to speed up."),
                io.DynamicCombo.Input(
                    "preset",
                    options=[io.DynamicCombo.Option(CUSTOM, custom_inputs()), *rows],
                    tooltip=(
                        "Settings measured for one model at its usual number of steps, or custom to set them here. "
                        "reference rows repeat the paper, slow and fast are ours."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The same model with these settings; sampled by an AR video sampler.")],
            accept_all_inputs=True,  # see choices.py
        )

    @classmethod
    def validate_inputs(cls, preset: Any = MISSING) -> bool | str:
        return check(cls, preset=preset)

    @classmethod
    def execute(cls, model: Any, preset: Mapping[str, Any], **_: Any) -> io.NodeOutput:
        with naming(NAME):
            return io.NodeOutput(with_reuse(model, settings(preset)))


def settings(preset: Mapping[str, Any]) -> ReuseSettings:
    """What the node's fields say. SettingError names the field that cannot work."""
    name = preset["preset"]
    if name == CUSTOM:
        return custom(preset)
    rows = preset_rows()
    if name not in rows:
        raise SettingError("preset", name, ", ".join((CUSTOM, *rows)))
    row = presets.load_preset(*rows[name])
    return ReuseSettings(row.policy, row.quantity, name, source=row)


def custom(fields: Mapping[str, Any]) -> ReuseSettings:
    policy: dict[str, Any] = {
        "name": fields["policy"],
        "warmup_steps": fields["warmup_steps"],
        "always_last": fields["always_last"],
        "max_reuses": fields["max_reuses"] or None,
        "last_tick": fields.get("last_tick") or False,  # the host hands None over for what a workflow does not have
    }
    if fields["policy"] == "schedule":
        policy["computed"] = step_list("computed_steps", fields["computed_steps"])
        first = fields.get("first_chunk_steps") or ""
        policy["first"] = step_list("first_chunk_steps", first) if first.strip() else ()
    known = {field.name for field in dataclasses.fields(POLICIES[fields["policy"]])}
    policy |= {name: fields[name] for name in ("threshold", "distance") if name in known}
    return ReuseSettings(
        build_policy(policy), build_quantity(fields["quantity"]), CUSTOM, DEVICES[fields["cache_device"]]
    )


def step_list(field: str, text: str) -> tuple[int, ...]:
    """``"0, 1, 4"`` as numbers."""
    words = text.replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        raise SettingError(field, text, "whole numbers with commas between them, such as 0, 1, 2, 4")
    return tuple(int(word) for word in words)
