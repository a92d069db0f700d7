"""FlowCache Report: what the last run of a MODEL did, as text, picture and JSON."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io, ui

from ..flowcache_core.report.document import to_json
from ..flowcache_core.report.text import summary
from .adapters.naming import CATEGORY, naming
from .adapters.run.settings import expectation, last_record
from .adapters.shown.picture import draw

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
                io.Latent.Input("latent", tooltip="The sampler's output, so that the report comes after it."),
            ],
            outputs=[
                io.String.Output("text", tooltip="Headline, map of chunks and steps, notes."),
                io.Image.Output("picture", tooltip="The map of chunks and steps with the K/V budget."),
                io.String.Output("json", tooltip="All numbers of the run; see docs/report-schema.md."),
            ],
            is_output_node=True,
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
        )

    @classmethod
    def execute(cls, model: Any, latent: Any) -> io.NodeOutput:
        with naming(NAME):
            record = last_record(model)
        text, picture = "\n".join(filter(None, (summary(record), expectation(model, record)))), draw(record)
        shown = {**ui.PreviewImage(picture, cls=cls).as_dict(), **ui.PreviewText(text).as_dict()}
        return io.NodeOutput(text, picture, json.dumps(to_json(record), allow_nan=False), ui=shown)
