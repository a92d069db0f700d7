"""AR Model Schedule: the noise levels that a few-step model was released with."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..flowcache_core.errors import require
from ..flowcache_core.released import RELEASED
from .adapters.declared import Node
from .adapters.naming import CATEGORY, naming
from .choices import MISSING, check

NAME = "AR Model Schedule"


class ReleasedSchedule(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowCacheReleasedSchedule",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "The noise levels of a few-step autoregressive model as its authors run it. For SamplerCustomAdvanced, "
                "with AR Video Sampler (FlowCache) and plan as released."
            ),
            search_aliases=["sigmas", "self forcing", "causal forcing", "longlive", "krea", "flowcache", "scheduler"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(RELEASED),
                    tooltip=(
                        "The same model as in the sampler. Video to video begins at a part of the noise: connect the "
                        "encoded video as latent_image."
                    ),
                )
            ],
            outputs=[io.Sigmas.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def validate_inputs(cls, model: Any = MISSING) -> bool | str:
        return check(cls, model=model)

    @classmethod
    def execute(cls, model: str) -> io.NodeOutput:
        with naming(NAME):
            require(model in RELEASED, "model", model, ", ".join(RELEASED))
        return io.NodeOutput(torch.tensor(RELEASED[model].schedule.sigmas))
