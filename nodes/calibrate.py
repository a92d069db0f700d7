"""FlowCache Calibrate: a preset for the user's own model, from one run that computed every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io, ui

from ..flowcache_core.calibrate.choose import Target
from ..flowcache_core.errors import require
from ..flowcache_core.presets.own import require_name
from .adapters.declared import Node
from .adapters.naming import CATEGORY, naming
from .adapters.run.calibration import Calibration, heads_preset
from .adapters.shown.curve_picture import draw_curve
from .adapters.shown.heads_picture import draw_heads
from .adapters.shown.page import Page
from .adapters.shown.said import said
from .choices import MISSING, check
from .presets import PresetLink

NAME = "FlowCache Calibrate"
HEADS = "attention heads"


def number(name: str, start: float, least: float, most: float, step: float, text: str) -> io.Input:
    return io.Float.Input(name, default=start, min=least, max=most, step=step, tooltip=text)


TARGETS: dict[str, tuple[str, list[io.Input]]] = {
    "share of steps": ("share", [number("share", 0.3, 0.01, 1.0, 0.01, "Computed steps over all steps.")]),
    "speed-up": ("speed_up", [number("speed_up", 2.5, 1.0, 100.0, 0.1, "Times as fast, of the time in the model.")]),
    "seconds": (
        "seconds",
        [number("seconds", 10.0, 0.01, 100_000.0, 0.1, "Seconds in the model for each later chunk, on this machine.")],
    ),
    "quality": (
        "psnr",
        [number("psnr", 50.0, 1.0, 100.0, 1.0, "dB against the uncached video, as expected from the recording.")],
    ),
    HEADS: ("density", [number("density", 0.5, 0.01, 1.0, 0.01, "Share of the self-attention that is computed.")]),
}
"""Name in the list -> field of a Target, and its input; the last is for FlowCache Sparse Attention."""


class Calibrate(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        options = [io.DynamicCombo.Option(name, inputs) for name, (_, inputs) in TARGETS.items()]
        return io.Schema(
            node_id="FlowCacheCalibrate",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Makes a preset for your own model and settings out of one video that was sampled with the preset "
                "record: which steps to compute, in the first chunk and in the later ones. No further runs."
            ),
            search_aliases=["flowcache", "calibration", "record", "own preset", "schedule", "tune"],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model that was sampled: from FlowCache Chunkwise Reuse with the preset record.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip=(
                        "The sampler's output: the recording is of the run that made it. Without it, the model's last "
                        "recording, also one that was interrupted."
                    ),
                ),
                io.DynamicCombo.Input(
                    "target",
                    options=options,
                    tooltip=(
                        "What the preset shall reach. What cannot be reached gives the nearest, and the text says so."
                    ),
                ),
                io.String.Input("name", default="calibrated", tooltip="Name of the preset."),
                io.Int.Input(
                    "chunks",
                    default=0,
                    min=0,
                    max=1000,
                    optional=True,
                    tooltip=(
                        "Length of the videos that it is for, in chunks; 0 for as long as the recorded one. The longer "
                        "a video, the less its first chunk costs."
                    ),
                    advanced=True,
                ),
            ],
            outputs=[
                PresetLink.Output("preset", tooltip="For FlowCache Preset and FlowCache Chunkwise Reuse."),
                io.String.Output("text", tooltip="What was chosen, and what other shares of steps would give."),
                io.Image.Output("picture", tooltip="Expected quality over computed steps; the steps of the preset."),
            ],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            accept_all_inputs=True,  # see choices.py
        )

    @classmethod
    def validate_inputs(cls, target: Any = MISSING) -> bool | str:
        return check(cls, target=target)

    @classmethod
    def execute(
        cls, model: Any, target: Mapping[str, Any], name: str, latent: Any = None, chunks: int = 0, **_: Any
    ) -> io.NodeOutput:
        with naming(NAME):
            require_name("name", name.strip())
            chosen = target["target"]
            require(chosen in TARGETS, "target", chosen, ", ".join(TARGETS))
            field = TARGETS[chosen][0]
            if chosen == HEADS:
                heads, text = heads_preset(model, latent, name.strip(), target[field])
                document, picture = heads.document, draw_heads(heads, Page.now())
            else:
                calibration = Calibration.of(model, latent, chunks or None)
                own, text = calibration.preset(name.strip(), Target(**{field: target[field]}))
                document, picture = own.document, draw_curve(calibration.chooser, own.preset, Page.now())
        text = said(text)
        images = ui.PreviewImage(picture, cls=cls).as_dict()
        return io.NodeOutput(document, text, picture, ui={**images, **ui.PreviewText(text).as_dict()})
