"""The bundled tiny models and their prompt: a video in seconds, without a download."""

from __future__ import annotations

from comfy_api.latest import io

from ..flowcache_core.errors import SettingError, require
from ..flowcache_core.mini.text import VOCABULARY, encode_prompt
from .adapters.declared import Node
from .adapters.mini import MODELS, load_mini_vae
from .adapters.naming import CATEGORY, naming
from .adapters.run.outer import with_slot

NAME, PROMPT_NAME = "FlowCache Mini Model", "FlowCache Mini Prompt"


class MiniModel(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowCacheMiniModel",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Tiny autoregressive video models that come with the pack: coloured shapes that move. To try "
                "FlowCache on any computer."
            ),
            search_aliases=["demo", "example model", "test model", "flowcache"],
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(MODELS),
                    default="wan",
                    optional=True,
                    tooltip=(
                        "wan: chunk after chunk, plan blockwise. magi: MAGI-1's architecture, plan sliding window and "
                        "Basic Guider."
                    ),
                )
            ],
            outputs=[
                io.Model.Output(tooltip="For AR Video Sampler (FlowCache); wan also for ComfyUI's Sampler AR Video."),
                io.Vae.Output(tooltip="For VAE Decode."),
            ],
        )

    @classmethod
    def execute(cls, model: str = "wan") -> io.NodeOutput:
        with naming(NAME):
            require(model in MODELS, "model", model, ", ".join(MODELS))
            return io.NodeOutput(with_slot(MODELS[model]()), load_mini_vae())


class MiniPrompt(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowCacheMiniPrompt",
            display_name=PROMPT_NAME,
            category=CATEGORY,
            description=f"A prompt for FlowCache Mini Model. It knows these words: {', '.join(VOCABULARY)}.",
            search_aliases=["demo prompt", "clip text encode", "flowcache"],
            inputs=[
                io.String.Input(
                    "text",
                    default="a red circle moving right",
                    tooltip=f"Colour, shape and direction, from: {', '.join(VOCABULARY)}. Empty for no prompt.",
                )
            ],
            outputs=[io.Conditioning.Output(tooltip="For a guider.")],
        )

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        with naming(PROMPT_NAME):
            try:
                embedding = encode_prompt(text)
            except ValueError as error:
                raise SettingError("text", text, str(error)) from error
        return io.NodeOutput([[embedding, {}]])
