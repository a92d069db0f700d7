"""FlowCache Chunkwise Reuse: MODEL in, MODEL out, with reuse settings on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..flowcache_core import presets
from ..flowcache_core.errors import SettingError, require
from ..flowcache_core.reuse import POLICIES, QUANTITIES
from .adapters.declared import Node
from .adapters.naming import CATEGORY, naming
from .adapters.run.outer import with_reuse
from .adapters.run.settings import ReuseSettings
from .choices import MISSING, check
from .inputs import part_of, placed_inputs

NAME = "FlowCache Chunkwise Reuse"
CUSTOM = "custom"
DEVICES = {"same as the model": None, "cpu": "cpu"}


def preset_rows() -> dict[str, tuple[str, str]]:
    """Name in the list -> (model, row), for every row that reuses something."""
    return {
        f"{model}: {name}": (model, name)
        for model in presets.models()
        for name, row in presets.model_file(model)["presets"].items()
        if row["policy"]["name"] != "never"
    }


def custom_inputs() -> list[io.Input]:
    """Everything that policies, distances and quantities declare, and what is the node's own, in their places."""
    own = [
        (
            0,
            io.Combo.Input(
                "policy",
                options=list(POLICIES),
                default="chunkwise",
                tooltip=(
                    "chunkwise: every chunk decides for itself (FlowCache). teacache: one decision for all active "
                    "chunks, the baseline. schedule: the fixed list in computed_steps."
                ),
            ),
        ),
        (
            4,
            io.Combo.Input(
                "quantity",
                options=list(QUANTITIES),
                default="velocity",
                tooltip=(
                    "What a reused step takes from the last computed one: its velocity, its change of the latents, or "
                    "what the transformer blocks added (needs more memory)."
                ),
            ),
        ),
        (
            7,
            io.Combo.Input(
                "cache_device",
                options=list(DEVICES),
                tooltip=(
                    "Where what computed steps leave for reuse is kept: velocities, changes of the latents, and "
                    "residuals, which are the largest. cpu saves graphics memory and costs the transfer."
                ),
                advanced=True,
            ),
        ),
    ]
    declared = placed_inputs([*POLICIES.values(), *QUANTITIES.values()])
    return [made for _, made in sorted([*own, *declared], key=lambda pair: pair[0])]


class ChunkwiseReuse(Node):
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
    device = fields["cache_device"]
    require(device in DEVICES, "cache_device", device, ", ".join(DEVICES))
    policy, quantity = part_of("policy", fields, POLICIES), part_of("quantity", fields, QUANTITIES)
    return ReuseSettings(policy, quantity, CUSTOM, DEVICES[device])
