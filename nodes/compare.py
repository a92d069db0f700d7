"""FlowCache Compare: how near one run's video is to another's, what each cost, and the rival to compare with."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from .adapters.declared import Node
from .adapters.naming import CATEGORY, naming
from .adapters.shown.comparison import Comparison, Side
from .adapters.shown.said import said

NAME = "FlowCache Compare"


def video(name: str, text: str) -> io.Input:
    return io.MultiType.Input(name, [io.Latent, io.Image], tooltip=text)


class Compare(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowCacheCompare",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Compares two videos made from the same noise: PSNR and SSIM of every chunk, both side by side with "
                "their difference, and what each run cost. Says which rival costs the same."
            ),
            search_aliases=["flowcache", "psnr", "ssim", "difference", "side by side", "quality"],
            inputs=[
                video("reference", "What the other one is measured against: the sampler's output, or its images."),
                video("result", "The video made with reuse, compression, or fewer steps, from the same noise."),
                io.Vae.Input("vae", optional=True, tooltip="Decodes latents; not needed where images are compared."),
                io.Model.Input(
                    "model_reference",
                    optional=True,
                    tooltip="The MODEL that was sampled for the reference, for seconds, K/V and computed steps.",
                ),
                io.Model.Input(
                    "model_result", optional=True, tooltip="The MODEL that was sampled for the result, for the same."
                ),
                io.Int.Input(
                    "chunk_frames",
                    default=3,
                    min=1,
                    max=4096,
                    optional=True,
                    tooltip="Latent frames of a chunk, where no MODEL is connected that knows.",
                    advanced=True,
                ),
                io.Int.Input(
                    "fps", default=16, min=1, max=240, optional=True, tooltip="Of the video on the node.", advanced=True
                ),
            ],
            outputs=[
                io.Image.Output("images", tooltip="Reference, result and their difference, 8 times enlarged in value."),
                io.String.Output("text", tooltip="The judgement, what the runs cost, and figures of every chunk."),
                io.String.Output("json", tooltip="The same as numbers."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        reference: Any,
        result: Any,
        vae: Any = None,
        model_reference: Any = None,
        model_result: Any = None,
        chunk_frames: int = 3,
        fps: int = 16,
    ) -> io.NodeOutput:
        with naming(NAME):
            sides = Side("reference", reference, model_reference), Side("result", result, model_result)
            found = Comparison.of(*sides, vae, chunk_frames)
        text = said(found.text)
        shown = {**found.shown(fps), **ui.PreviewText(text).as_dict()}
        return io.NodeOutput(found.images, text, found.document, ui=shown)
