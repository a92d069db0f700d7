"""The bundled tiny models and their prompts: a video in seconds, without a download."""

from __future__ import annotations

from comfy_api.latest import io

from ..flowcache_core import mini_scenes
from ..flowcache_core.errors import SettingError, require
from ..flowcache_core.mini.text import VOCABULARY
from .adapters.declared import Node
from .adapters.mini import MODELS
from .adapters.naming import CATEGORY, naming
from .adapters.run.outer import with_slot

NAME, PROMPT_NAME = "FlowCache Mini Model", "FlowCache Mini Prompt"
SCENE_WORDS = mini_scenes.VOCABULARY
SCENE = "a high red circle moving right, a low blue square resting, camera panning left, by night"


class MiniModel(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowCacheMiniModel",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Tiny autoregressive video models that come with the pack: coloured shapes that move, and small "
                "scenes. To try FlowCache on any computer."
            ),
            search_aliases=["demo", "example model", "test model", "flowcache"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(MODELS),
                    default="wan",
                    optional=True,
                    tooltip=(
                        "wan: chunk after chunk, plan blockwise, 64x64. magi: MAGI-1's architecture, plan sliding "
                        "window and Basic Guider, 64x64. scenes: as wan, 128x128, several shapes before hills, a "
                        "camera and events; 4 to 8 times slower."
                    ),
                )
            ],
            outputs=[
                io.Model.Output(
                    tooltip="For AR Video Sampler (FlowCache); wan and scenes also for ComfyUI's Sampler AR Video."
                ),
                io.Vae.Output(tooltip="For VAE Decode."),
            ],
        )

    @classmethod
    def execute(cls, model: str = "wan") -> io.NodeOutput:
        with naming(NAME):
            require(model in MODELS, "model", model, ", ".join(MODELS))
            return io.NodeOutput(with_slot(MODELS[model].load()), MODELS[model].load_vae())


class MiniPrompt(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowCacheMiniPrompt",
            display_name=PROMPT_NAME,
            category=CATEGORY,
            description=(
                f"A prompt for FlowCache Mini Model. wan and magi know these words: {', '.join(VOCABULARY)}. scenes "
                f"takes phrases between commas and knows: {', '.join(SCENE_WORDS)}."
            ),
            search_aliases=["demo prompt", "clip text encode", "flowcache"],
            inputs=[
                io.String.Input(
                    "text",
                    default="a red circle moving right",
                    tooltip=(
                        f"Colour, shape and direction, from: {', '.join(VOCABULARY)}. For scenes such as: {SCENE}. "
                        "Empty for no prompt."
                    ),
                ),
                io.Combo.Input(
                    "model",
                    options=list(MODELS),
                    default="wan",
                    optional=True,
                    tooltip="The model that it is for, as in FlowCache Mini Model: each has words of its own.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="For a guider.")],
        )

    @classmethod
    def execute(cls, text: str, model: str = "wan") -> io.NodeOutput:
        with naming(PROMPT_NAME):
            require(model in MODELS, "model", model, ", ".join(MODELS))
            try:
                embedding = MODELS[model].encode(text)
            except ValueError as error:
                raise SettingError("text", text, str(error)) from error
        return io.NodeOutput([[embedding, {}]])
