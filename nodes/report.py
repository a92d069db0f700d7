"""FlowCache Report: what the run that made a latent did, as text, picture and JSON."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from .adapters.naming import CATEGORY
from .adapters.shown.run_report import RunReport

NAME = "FlowCache Report"


class Report(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowCacheReport",
            display_name=NAME,
            category=CATEGORY,
            description="Shows which steps of which chunks were computed or reused, and how much K/V was held.",
            search_aliases=["flowcache", "statistics", "cache map", "profile", "kv cache"],
            inputs=[
                io.Model.Input("model", tooltip="The model that was sampled: the one connected to the guider."),
                io.Latent.Input("latent", tooltip="The sampler's output: the report is on the run that made it."),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The decoded video: where steps were computed in part, what was computed is laid over it.",
                ),
            ],
            outputs=[
                io.String.Output("text", tooltip="Headline, map of chunks and steps, notes."),
                io.Image.Output("picture", tooltip="The map of chunks and steps with the K/V budget."),
                io.String.Output(
                    "json", tooltip="All numbers of the run, explained in docs/report-schema.md in the pack's folder."
                ),
            ],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, model: Any, latent: Any, images: Any = None) -> io.NodeOutput:
        report = RunReport.of(model, latent, images)
        images = report.tried("preview", lambda: ui.PreviewImage(report.picture, cls=cls).as_dict(), lambda _: {})
        return io.NodeOutput(
            report.text, report.picture, report.document, ui={**images, **ui.PreviewText(report.on_node).as_dict()}
        )
