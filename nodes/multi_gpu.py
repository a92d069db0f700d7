"""FlowCache Multi-GPU: MODEL in, MODEL out, sampled by several processes that share its attention heads."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from .adapters.declared import Node
from .adapters.naming import CATEGORY, naming
from .adapters.ranks.choice import BRANCHES_FIRST, NAME, SHARED, Devices, RanksChoice
from .adapters.ranks.text import described
from .adapters.run.outer import with_ranks
from .adapters.shown.running_node import show_text
from .adapters.shown.said import said


class MultiGPU(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowCacheMultiGPU",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Samples one video on several GPUs: each loads the model's file, takes some attention heads (and, with"
                " guidance, a branch) and keeps their K/V. For AR Video Sampler (FlowCache). With one GPU it changes "
                "nothing."
            ),
            search_aliases=[
                "multi gpu",
                "several gpus",
                "second gpu",
                "ulysses",
                "parallel",
                "raylight",
                "xdit",
                "flowcache",
            ],
            inputs=[
                io.Model.Input("model", tooltip="As its loader made it, with FlowCache's own nodes; without LoRA."),
                io.Int.Input(
                    "ranks",
                    default=0,
                    min=0,
                    max=256,
                    tooltip=(
                        "Processes that share the run, a GPU each; 0 for as many as there are GPUs and the model's "
                        "heads can be shared by. On a CPU any number that fits, to try it: no faster."
                    ),
                ),
                io.Combo.Input(
                    "shared",
                    options=list(SHARED),
                    default=BRANCHES_FIRST,
                    tooltip=(
                        "branches first: with guidance, half of the ranks for each of its two forwards, which exchange "
                        "least. heads only: all ranks share the heads of every forward."
                    ),
                ),
                io.Int.Input(
                    "timeout",
                    default=300,
                    min=1,
                    max=86400,
                    tooltip="Seconds that a rank waits for another before the run ends with an error.",
                    advanced=True,
                ),
            ],
            outputs=[io.Model.Output(tooltip="The same model; AR Video Sampler (FlowCache) runs it on ranks.")],
        )

    @classmethod
    def execute(cls, model: Any, ranks: int = 0, shared: str = BRANCHES_FIRST, timeout: int = 300) -> io.NodeOutput:
        with naming(NAME):
            choice, devices = RanksChoice(ranks, shared, float(timeout)), Devices.here()
            choice.check(devices)
            text = said(described(model, choice, devices))
            patched = with_ranks(model, choice if choice.most(devices) > 1 else None)
        show_text(text)
        return io.NodeOutput(patched, ui=ui.PreviewText(text))
