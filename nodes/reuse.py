"""FlowCache Chunkwise Reuse: MODEL in, MODEL out, with reuse settings on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..flowcache_core import presets
from ..flowcache_core.calibrate.record import Record
from ..flowcache_core.errors import SettingError, require, require_finite
from ..flowcache_core.presets import auto
from ..flowcache_core.presets.own import OwnPreset
from ..flowcache_core.reuse import POLICIES, QUANTITIES
from ..flowcache_core.reuse.quantity import Velocity
from .adapters.declared import Node
from .adapters.files import own_presets
from .adapters.naming import CATEGORY, naming
from .adapters.run.outer import with_reuse
from .adapters.run.settings import AutoReuse, ReuseSettings
from .choices import MISSING, check
from .inputs import part_of, placed_inputs
from .presets import LISTS_TOOLTIP, PresetLink, linked

NAME = "FlowCache Chunkwise Reuse"
AUTO, CUSTOM, RECORD, LISTS = auto.NAME, "custom", "record", "held in this workflow"
OWN = "my: "
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


def held(text: str) -> list[io.Input]:
    """The field by which a preset travels with the workflow."""
    return [io.String.Input("lists", default=text, multiline=True, tooltip=LISTS_TOOLTIP, advanced=True)]


def slider() -> io.Input:
    return io.Float.Input(
        "fidelity",
        default=0.5,
        min=0.0,
        max=1.0,
        step=0.05,
        display_mode=io.NumberDisplay.slider,
        tooltip="Speed <-> fidelity: 0 computes the fewest steps that there are lists for, 1 the most.",
    )


def options() -> list[io.DynamicCombo.Option]:
    """What there is to choose: the user's own presets beside those of the pack."""
    return [
        io.DynamicCombo.Option(AUTO, [slider()]),
        io.DynamicCombo.Option(CUSTOM, custom_inputs()),
        io.DynamicCombo.Option(RECORD, []),
        *(io.DynamicCombo.Option(f"{OWN}{name}", held(own_presets.text_of(name))) for name in own_presets.names()),
        io.DynamicCombo.Option(LISTS, held("")),
        *(io.DynamicCombo.Option(name, []) for name in preset_rows()),
    ]


class ChunkwiseReuse(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
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
                    options=options(),
                    tooltip=(
                        "auto takes what is best known for the model, steps and shift that run: your own preset, "
                        "else one of the pack, else the nearest; it refuses nothing. Named ones are for one model at "
                        "its number of steps: reference rows repeat the paper, slow and fast are ours, my are your "
                        "own. custom: set it here. record computes every step and keeps what FlowCache Calibrate needs."
                    ),
                ),
                PresetLink.Input(
                    "own_preset",
                    optional=True,
                    tooltip=(
                        "From FlowCache Preset or FlowCache Calibrate: taken instead of the preset chosen here; with "
                        "auto also for other runs than it was made for."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The same model with these settings; sampled by an AR video sampler.")],
            accept_all_inputs=True,  # see choices.py
        )

    @classmethod
    def validate_inputs(cls, preset: Any = MISSING) -> bool | str:
        if isinstance(preset, str) and preset.startswith(OWN):
            return True  # a preset of another machine may lie in the workflow: see ``prepared``
        return check(cls, preset=preset)

    @classmethod
    def prepared(cls, inputs: dict[str, Any]) -> dict[str, Any]:
        """A preset of another user comes without its fields, which the host knows of presets in the list only."""
        name = inputs.get("preset")
        if isinstance(name, str) and name.startswith(OWN):
            inputs = {**inputs, "preset": {"preset": name, "lists": inputs.get("preset.lists", "")}}
        return inputs

    @classmethod
    def execute(cls, model: Any, preset: Mapping[str, Any], own_preset: Any = None, **_: Any) -> io.NodeOutput:
        with naming(NAME):
            own = None if own_preset is None else linked(own_preset)
            return io.NodeOutput(with_reuse(model, chosen(preset, own)))


def chosen(preset: Mapping[str, Any], own: OwnPreset | None) -> ReuseSettings | AutoReuse:
    """What the node's fields and its link say. SettingError names the field that cannot work."""
    if preset["preset"] == AUTO:
        require_finite("fidelity", preset["fidelity"], minimum=0.0, maximum=1.0)
        return AutoReuse(preset["fidelity"], None if own is None else own.preset)
    return settings(preset) if own is None else own_settings(own)


def settings(preset: Mapping[str, Any]) -> ReuseSettings:
    """What the node's fields say. SettingError names the field that cannot work."""
    name, rows = preset["preset"], preset_rows()
    if name == CUSTOM:
        return custom(preset)
    if name == RECORD:
        return ReuseSettings(Record(), Velocity(), RECORD)
    if name == LISTS or name.startswith(OWN):
        own = chosen_preset(name, preset.get("lists") or "")
        return replace(own_settings(own), remarks=differing(name, own))
    if name not in rows:
        raise SettingError("preset", name, ", ".join((AUTO, CUSTOM, RECORD, *rows)))
    row = presets.load_preset(*rows[name])
    return ReuseSettings(row.policy, row.quantity, name, source=row)


def chosen_preset(name: str, lists: object) -> OwnPreset:
    """One of the user's own: from the workflow where it lies there, else from the user's folder. SettingError."""
    if isinstance(lists, str) and lists.strip():
        return OwnPreset.parse(lists, "lists")
    if name == LISTS:
        raise SettingError("lists", "nothing", "a preset as JSON, as FlowCache Preset shows it")
    try:
        return own_presets.load(name.removeprefix(OWN))
    except SettingError as error:
        raise error if error.field != "preset" else SettingError("preset", name, known_presets()) from error


def differing(name: str, own: OwnPreset) -> tuple[str, ...]:
    """One sentence where the user's folder has another preset of this name than the workflow."""
    kept = own_presets.text_of(name.removeprefix(OWN)) if name.startswith(OWN) else ""
    other = f"preset {own.name} is as the workflow holds it; your folder has another: choose it anew to take that one"
    return (other,) if kept and kept != own.text else ()


def known_presets() -> str:
    return ", ".join(option.key for option in options())


def own_settings(own: OwnPreset) -> ReuseSettings:
    return ReuseSettings(own.preset.policy, own.preset.quantity, own.name, source=own.preset)


def custom(fields: Mapping[str, Any]) -> ReuseSettings:
    device = fields["cache_device"]
    require(device in DEVICES, "cache_device", device, ", ".join(DEVICES))
    policy, quantity = part_of("policy", fields, POLICIES), part_of("quantity", fields, QUANTITIES)
    return ReuseSettings(policy, quantity, CUSTOM, DEVICES[device])
