"""AR Prompt Schedule: another prompt from a given chunk on."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..flowcache_core.errors import SettingError
from .adapters.declared import Node
from .adapters.naming import CATEGORY, naming
from .adapters.run.prompt_schedule import schedule

NAME = "AR Prompt Schedule"
MOST = 4


def rows() -> list[io.Input]:
    fields: list[io.Input] = [
        io.Conditioning.Input("prompt_1", tooltip="The prompt of the first chunks, from chunk 0 on.")
    ]
    for number in range(2, MOST + 1):
        optional = number > 2
        fields += [
            io.Conditioning.Input(
                f"prompt_{number}", optional=optional, tooltip=f"The prompt from chunk start_{number} on."
            ),
            io.Int.Input(
                f"start_{number}",
                default=3 * (number - 1),
                min=1,
                max=100000,
                optional=optional,
                tooltip=f"First chunk that follows prompt_{number}, counted from 0; clean prefix chunks count too.",
            ),
        ]
    return fields


class PromptSchedule(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowCachePromptSchedule",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Changes the prompt while the video is being made: each prompt holds from its start chunk on. Works"
                " with AR Video Sampler (FlowCache); other samplers use the first prompt only. Chain two nodes for more"
                " prompts."
            ),
            search_aliases=["prompt travel", "prompt switch", "longlive", "interactive video", "flowcache"],
            inputs=[
                *rows(),
                io.Boolean.Input(
                    "recache",
                    default=False,
                    tooltip=(
                        "At a switch, compute the K/V of the finished chunks again under the new prompt, so that it"
                        " takes effect at once. Costs one pass per kept chunk; only with the blockwise plan."
                    ),
                ),
                io.Boolean.Input(
                    "new_shots",
                    default=False,
                    optional=True,  # workflows made before it have none
                    tooltip=(
                        "Every prompt begins a new shot: a cut. Models that know shots (LongLive 2.0, plan as released)"
                        " then keep the start of the shot beside that of the video, and see a gap in time."
                    ),
                    advanced=True,
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="For the positive input of a guider.")],
        )

    @classmethod
    def execute(cls, prompt_1: Any, recache: bool, new_shots: bool = False, **rest: Any) -> io.NodeOutput:
        with naming(NAME):
            later: list[tuple[int, int, Any]] = []
            for n in range(2, MOST + 1):
                prompt, start = rest.get(f"prompt_{n}"), rest.get(f"start_{n}")
                if prompt is not None:
                    if start is None:
                        raise SettingError(f"start_{n}", start, f"the chunk from which prompt_{n} holds")
                    later.append((n, start, prompt))
            return io.NodeOutput(schedule(prompt_1, later, recache, new_shots))
