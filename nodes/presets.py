"""FlowCache Preset: holds a preset inside the workflow, names it, saves it to the user's folder and loads it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io, ui

from ..flowcache_core.errors import SettingError, listed
from ..flowcache_core.presets import ACCEPTED
from ..flowcache_core.presets.own import KINDS, OwnHeads, OwnPreset, OwnRow, own_row
from ..flowcache_core.reading.json_text import parse_object
from .adapters.declared import Node
from .adapters.files import own_presets
from .adapters.naming import CATEGORY, naming
from .adapters.shown.said import said
from .choices import MISSING

NAME = "FlowCache Preset"
NOTHING = "none"
PresetLink = io.Custom("FLOWCACHE_PRESET")
LISTS_TOOLTIP = (
    "The preset itself, as JSON. It is part of the workflow, so that whoever gets the workflow has the preset too."
)


def linked(value: Mapping[str, Any]) -> OwnPreset:
    """What a PRESET link carries: the document of one preset. SettingError where another node made something else."""
    rows = value.get("presets")
    if not isinstance(rows, Mapping) or len(rows) != 1:
        raise SettingError("preset", listed(value), "a link from FlowCache Calibrate or FlowCache Preset")
    ((name, row),) = rows.items()
    return OwnPreset.of(name, row)


def linked_row(value: Mapping[str, Any]) -> OwnRow:
    """As :func:`linked`, a preset of either kind."""
    return own_row(dict(value), "preset") if value.get(OwnHeads.key) else linked(value)


class Preset(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowCachePreset",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Holds a preset of your own: from FlowCache Calibrate, from your folder, or from the workflow itself. "
                "Names it and saves it."
            ),
            search_aliases=["flowcache", "save preset", "load preset", "share", "calibrated"],
            inputs=[
                PresetLink.Input(
                    "preset",
                    optional=True,
                    lazy=True,
                    tooltip=(
                        "From FlowCache Calibrate. It goes first, unless hold is on and a preset is held in lists."
                    ),
                ),
                io.Boolean.Input(
                    "hold",
                    default=False,
                    tooltip="Take what is held below and leave what is linked alone: the recording is not made again.",
                ),
                io.Combo.Input(
                    "file",
                    options=[NOTHING, *files()],
                    default=NOTHING,
                    tooltip=(
                        "A preset of your folder (user/default/flowcache/presets, heads: .../heads); none for the one "
                        "held below."
                    ),
                ),
                io.String.Input("lists", default="", multiline=True, tooltip=LISTS_TOOLTIP),
                io.String.Input(
                    "name", default="", tooltip="A new name for the preset; empty for the one that it has."
                ),
                io.Boolean.Input(
                    "save",
                    default=False,
                    tooltip=(
                        "Save it under its name in your folder, where FlowCache Chunkwise Reuse lists it after the "
                        "page was reloaded (R). A preset of the same name is replaced."
                    ),
                ),
            ],
            outputs=[
                PresetLink.Output("preset", tooltip="For FlowCache Chunkwise Reuse."),
                io.String.Output("text", tooltip="What the preset is for, and what it rests on."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, file: Any = MISSING, lists: Any = MISSING) -> bool | str:
        """A file that is not there stops nothing where the workflow holds the preset itself: either field mends it."""
        known, held = (NOTHING, *files()), isinstance(lists, str) and bool(lists.strip())
        given = file is not MISSING and file is not None  # else the host refuses it, or a link will bring it
        if given and file not in known and not (held and isinstance(file, str) and file):
            field = "" if lists is MISSING else "file: "  # the host names it where the answer is for one field
            return said(f"{field}got {file or 'nothing'}, accepted: {', '.join(known)}")
        return True

    @classmethod
    def check_lazy_status(cls, preset: Any = MISSING, hold: bool = False, lists: str = "", **_: Any) -> list[str]:
        """The host hands over None for a link that it has not followed yet, and nothing where there is no link."""
        return ["preset"] if preset is None and not (hold and lists.strip()) else []

    @classmethod
    def execute(
        cls, hold: bool, file: str, lists: str, name: str, save: bool, preset: Mapping[str, Any] | None = None
    ) -> io.NodeOutput:
        with naming(NAME):
            own, source = found(preset, hold, file, lists)
            own = own.renamed(name.strip()) if name.strip() else own
            lines = [f"{own.name}, from {source}", *described(own)]
            if save:
                lines.append(f"saved: {own.save(own_presets.own_folder(type(own))).name}")
        text = said("\n".join(lines))
        return io.NodeOutput(own.document, text, ui={"lists": (own.text,), **ui.PreviewText(text).as_dict()})


def files() -> dict[str, tuple[type[OwnRow], str]]:
    """Name in the list -> kind and name of every preset in the user's folder."""
    return {
        (f"{kind.folder}: " if kind is not OwnPreset else "") + name: (kind, name)
        for kind in KINDS
        for name in own_presets.names(kind)
    }


def found(preset: Mapping[str, Any] | None, hold: bool, file: str, lists: str) -> tuple[OwnRow, str]:
    """The preset and where it is from: the link, the file, or the workflow. SettingError where there is none."""
    held = bool(lists.strip())
    if preset is not None and not (hold and held):
        return linked_row(preset), "what is linked"
    there = files()
    if file != NOTHING and not hold and (file in there or not held):
        kind, name = there.get(file, (OwnPreset, file))
        return own_presets.load_of(kind, name, "file"), "your folder"
    if held:
        missing = "" if file in (NOTHING, *there) else f" ({file} is not in your folder)"
        return own_row(parse_object(lists, "lists", ACCEPTED), "lists"), f"this workflow{missing}"
    accepted = "a link from FlowCache Calibrate, a file of your folder, or a preset as JSON in lists"
    raise SettingError("preset", "nothing", accepted)


def described(own: OwnRow) -> list[str]:
    """What it is for, in lines."""
    if isinstance(own, OwnHeads):
        return [own.preset.text, f"heads of {own.preset.model}, at density {own.preset.method.density:g}"]
    assert isinstance(own, OwnPreset)
    preset, evidence = own.preset, own.row.get("evidence", {})
    lines = [preset.text]
    if preset.requires is not None:
        needs = [f"{value:g} steps" if key == "steps" else f"{key} {value:g}" for key, value in preset.requires.items()]
        lines.append(f"for {' at '.join(needs)}")
    if preset.architecture:
        unnamed = preset.model == preset.architecture  # its file is not known
        lines.append(
            f"recorded on {preset.model}" if unnamed else f"recorded on {preset.model} ({preset.architecture})"
        )
    if isinstance(evidence.get("plan"), str) and isinstance(evidence.get("solver"), str):
        guidance = evidence.get("guidance")
        lines.append(f"plan {evidence['plan']}, solver {evidence['solver']}, guidance {guidance}")
    return lines
