"""A node pack for the tests: a node that expands into others, as loops and subgraph nodes of other packs do."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import ComfyExtension, io
from comfy_execution.graph_utils import GraphBuilder


class ExpandingSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            "ExpandingSampler",
            inputs=[
                io.Noise.Input("noise"),
                io.Guider.Input("guider"),
                io.Sampler.Input("sampler"),
                io.Sigmas.Input("sigmas"),
                io.Latent.Input("latent_image"),
            ],
            outputs=[io.Latent.Output()],
            enable_expand=True,
        )

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        graph = GraphBuilder()
        return io.NodeOutput(graph.node("SamplerCustomAdvanced", **inputs).out(0), expand=graph.finalize())


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [ExpandingSampler]


async def comfy_entrypoint() -> Extension:
    return Extension()
