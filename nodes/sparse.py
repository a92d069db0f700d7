"""FlowCache Sparse Attention: MODEL in, MODEL out, with sparse attention on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui

from ..flowcache_core.calibrate.measured_heads import MeasureHeads
from ..flowcache_core.errors import SettingError
from ..flowcache_core.presets.own import OwnHeads
from ..flowcache_core.presets.sparse import SparsePreset, load_sparse, sparse_names
from ..flowcache_core.sparse.build import CHOICES
from ..flowcache_core.sparse.calibrated import Calibrated
from ..flowcache_core.sparse.mask_reuse import MaskReuse
from ..flowcache_core.sparse.method import SparseMethod
from ..flowcache_core.sparse.settings import SparseSettings
from .adapters.declared import Node
from .adapters.files import own_presets
from .adapters.naming import CATEGORY, naming
from .adapters.run.outer import with_measuring, with_sparse
from .adapters.run.sparse import NAME, described
from .adapters.run.table_fit import fit_heads, heads_notes
from .adapters.shown.running_node import show_text
from .adapters.shown.said import said
from .choices import MISSING, check
from .inputs import chosen, inputs_of, part_of, placed_inputs
from .presets import LISTS_TOOLTIP, PresetLink
from .reuse import LISTS, OWN

MEASURE = MeasureHeads.name
DENSE = ("dense_chunks", "dense_steps")
"""Fields of SparseSettings that say where nothing need be measured."""


class SparseAttention(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowCacheSparseAttention",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Leaves out the blocks of self-attention that hold little of it, head by head. Pays for long contexts "
                "at 720p and more without SageAttention; little at 480p with few steps, nothing with a K/V budget of "
                "1 or 2 chunks. Connect it before an AR video sampler."
            ),
            search_aliases=["sparse attention", "xattention", "haste", "block sparse", "flex attention", "flowcache"],
            inputs=[
                io.Model.Input("model", tooltip="The autoregressive video model to speed up."),
                io.DynamicCombo.Input(
                    "preset",
                    options=options(),
                    tooltip=(
                        "How blocks are chosen. xattention: those that hold the share p of a row's attention. MODEL: "
                        "rows: the same with p for every head, calibrated on that model. top-k and window: the same "
                        "number in every row, the best or the nearest; controls. measure heads: leave nothing out and "
                        "measure every head of this model in the next video, for FlowCache Calibrate."
                    ),
                ),
                PresetLink.Input(
                    "own_preset",
                    optional=True,
                    tooltip="Heads of your own model, from FlowCache Calibrate or FlowCache Preset. They go first.",
                ),
                *inputs_of(SparseSettings),
                io.Boolean.Input(
                    "mask_reuse",
                    default=False,
                    tooltip=(
                        "A mask serves again at later steps until its head has drifted. Saves little: choosing is "
                        "cheap."
                    ),
                ),
                *inputs_of(MaskReuse),
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
            fields = {key: inputs[f"preset.{key}"] for key in ("density", "lists") if f"preset.{key}" in inputs}
            inputs = {**inputs, "preset": {"preset": name, **fields}}
        return inputs

    @classmethod
    def execute(cls, model: Any, preset: Mapping[str, Any], own_preset: Any = None, **fields: Any) -> io.NodeOutput:
        with naming(NAME):
            if own_preset is None and preset["preset"] == MEASURE:
                measure = measure_of(preset, fields)
                patched, text = with_measuring(model, measure), measuring(measure, model.model.diffusion_model)
            else:
                heads = OwnHeads.from_document(dict(own_preset), "preset").preset if own_preset else heads_of(preset)
                if heads is not None:
                    fit_heads(heads, model, shipped=own_preset is None and preset["preset"] in sparse_names())
                sparse = settings(method_of(preset, heads), fields)
                patched = with_sparse(model, sparse, heads)
                text = "\n".join((described(sparse, model.model.diffusion_model), *heads_notes(heads, model)))
        text = said(text)
        show_text(text)
        return io.NodeOutput(patched, ui=ui.PreviewText(text))


def options() -> list[io.DynamicCombo.Option]:
    """What there is to choose: the user's own heads beside those of the pack."""
    density = [made for place, made in placed_inputs([Calibrated]) if made.id == "density"]
    own = own_presets.names(OwnHeads)
    return [
        *(io.DynamicCombo.Option(name, inputs_of(kind)) for name, kind in CHOICES.items()),
        io.DynamicCombo.Option(MEASURE, inputs_of(MeasureHeads)),
        *(io.DynamicCombo.Option(OWN + name, [*density, held(own_presets.text_of(name, OwnHeads))]) for name in own),
        io.DynamicCombo.Option(LISTS, [*density, held("")]),
        *(io.DynamicCombo.Option(name, density) for name in sparse_names()),
    ]


def held(text: str) -> io.Input:
    """The field by which heads travel with the workflow."""
    return io.String.Input("lists", default=text, multiline=True, tooltip=LISTS_TOOLTIP, advanced=True)


def heads_of(preset: Mapping[str, Any]) -> SparsePreset | None:
    """The calibrated row that ``preset`` names, at its density; None for a method. SettingError names what there is."""
    name, rows = preset["preset"], sparse_names()
    if name in CHOICES:
        return None
    if name in rows:
        found = load_sparse(*rows[name])
    elif name == LISTS or name.startswith(OWN):
        found = own_heads(name, preset.get("lists") or "").preset
    else:
        raise SettingError("preset", name, ", ".join(option.key for option in options()))
    return replace(found, method=found.at(preset.get("density")))


def method_of(preset: Mapping[str, Any], heads: SparsePreset | None) -> SparseMethod:
    """heads: the row that goes first, None where ``preset`` names a method."""
    return part_of("preset", preset, CHOICES) if heads is None else heads.method


def measure_of(preset: Mapping[str, Any], fields: Mapping[str, Any]) -> MeasureHeads:
    dense = {name: value for name, value in chosen(SparseSettings, fields).items() if name in DENSE}
    return MeasureHeads(**chosen(MeasureHeads, preset), **dense)


def own_heads(name: str, lists: str) -> OwnHeads:
    """Heads of the user's own: from the workflow where they lie there, else from the user's folder. SettingError."""
    if lists.strip():
        return OwnHeads.parse(lists, "lists")
    if name == LISTS:
        raise SettingError("lists", "nothing", "heads as JSON, as FlowCache Preset shows them")
    return own_presets.load_of(OwnHeads, name.removeprefix(OWN))


def settings(method: SparseMethod, fields: Mapping[str, Any]) -> SparseSettings:
    """What the node's fields say. SettingError names the field that cannot work."""
    reuse = MaskReuse(**chosen(MaskReuse, fields)) if fields.get("mask_reuse") else None
    return SparseSettings(method, **chosen(SparseSettings, fields), reuse=reuse)


def measuring(measure: MeasureHeads, transformer: Any) -> str:
    """For the node: what the next run will take."""
    sizes = getattr(transformer, "config", transformer)
    each = sizes.num_layers * sizes.num_heads * (len(measure.candidates) - 1)
    return (
        f"Measures {sizes.num_layers} layers of {sizes.num_heads} heads in the next video, which stays dense: "
        f"{each * measure.samples} more forwards of a chunk. A run that is stopped goes on with the same seed; every "
        "other seed adds a video. Then FlowCache Calibrate with the target attention heads."
    )
