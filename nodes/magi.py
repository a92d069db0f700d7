"""MAGI-1: model, VAE, prompt, noise levels and latents. The sampler is AR Video Sampler (FlowCache)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy_api.latest import io

from ..flowcache_core.errors import SettingError, require, require_count
from ..flowcache_core.models.magi.config import LATENT_CHANNELS
from ..flowcache_core.models.magi.guidance import GuidanceScales
from ..flowcache_core.models.magi.text import TokenSwitches
from ..flowcache_core.schedule import SHORTCUTS, magi
from ..flowcache_core.video.magi import DISTILLED_STEPS
from .adapters.declared import Node
from .adapters.files.checkpoints import WEIGHT_DTYPES
from .adapters.files.listed import listed_file
from .adapters.files.weight_files import whole_models
from .adapters.magi.model import MagiVariant, load_magi_model, looks_distilled
from .adapters.magi.text import conditioning, encode, read_table, tables
from .adapters.magi.vae import load_host_vae
from .adapters.naming import CATEGORY, naming
from .adapters.run.outer import with_slot
from .choices import MISSING, check

MODEL_NAME, VAE_NAME, PROMPT_NAME = "Load MAGI-1 Model", "Load MAGI-1 VAE", "MAGI-1 Prompt"
SCHEDULE_NAME, LATENT_NAME = "MAGI-1 Schedule", "Empty MAGI-1 Latent"
MODELS, VAES = "diffusion_models", "vae"
CHUNK_FRAMES, PIXELS = 6, 8
ALIASES = ["magi", "sand ai", "flowcache", "ar video"]


class LoadMagiModel(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        nearly_clean = io.Boolean.Input(
            "nearly_clean",
            default=True,
            tooltip=(
                "Run the oldest chunk once more on its own in the last quarter of its steps, as released. Off saves up "
                "to a fifth of the time; FlowCache runs without it."
            ),
        )
        text_scale = io.Float.Input(
            "text_scale",
            default=7.5,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="How much the prompt counts; 7.5 as released.",
        )
        previous_scale = io.Float.Input(
            "previous_scale",
            default=1.5,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="How much the chunks before count; 1.5 as released.",
        )
        ranges = io.String.Input(
            "kv_ranges",
            default="",
            tooltip=(
                "How many chunks a chunk sees, itself included, in each part of its steps, noise first, such as"
                " 5, 4, 3, 2. Empty for all."
            ),
            advanced=True,
        )
        clean_range = io.Int.Input(
            "clean_range",
            default=1,
            min=1,
            max=10000,
            optional=True,  # workflows made before it have none
            tooltip="Beside kv_ranges: how many chunks a finished or given chunk sees, itself included. 1 as released.",
            advanced=True,
        )
        fields: dict[str, list[io.Input]] = {
            "auto": [],
            "distilled": [nearly_clean, ranges, clean_range],
            "base": [text_scale, previous_scale, ranges, clean_range],
        }
        return io.Schema(
            node_id="FlowCacheLoadMagiModel",
            display_name=MODEL_NAME,
            category=CATEGORY,
            description=(
                "Loads MAGI-1 (4.5B or 24B; base, distilled, quantised) from its official files: one file, or the index"
                " of a folder of shards."
            ),
            search_aliases=[*ALIASES, "unet loader"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=whole_models(folder_paths.get_filename_list(MODELS)),
                    tooltip="Put the official folder, such as 4.5B_distill, into models/diffusion_models.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    tooltip="Number format of the weights in memory. K/V keeps the format the model computes in.",
                    advanced=True,
                ),
                io.DynamicCombo.Input(
                    "variant",
                    options=[io.DynamicCombo.Option(name, inputs) for name, inputs in fields.items()],
                    tooltip=(
                        "distilled: one forward per step. base: three forwards with guidance. auto: distilled when the "
                        "folder or file is called so."
                    ),
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="For AR Video Sampler (FlowCache) with plan sliding window and Basic Guider.")
            ],
            accept_all_inputs=True,  # see choices.py
        )

    @classmethod
    def validate_inputs(cls, model_name: Any = MISSING, variant: Any = MISSING) -> bool | str:
        return check(cls, model_name=model_name, variant=variant)

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str, variant: Mapping[str, Any], **_: Any) -> io.NodeOutput:
        with naming(MODEL_NAME):
            path = listed_file(MODELS, model_name, "model_name")
            return io.NodeOutput(with_slot(load_magi_model(path, weight_dtype, chosen_variant(variant, model_name))))


def chosen_variant(fields: Mapping[str, Any], model_name: str) -> MagiVariant:
    """What the node's fields say. SettingError naming one that cannot work."""
    name = fields["variant"]
    require(name in ("auto", "distilled", "base"), "variant", name, "auto, distilled or base")
    if name == "auto":
        return MagiVariant(distilled=looks_distilled(model_name))
    ranges = kv_ranges(fields["kv_ranges"])
    clean_range = (fields.get("clean_range") or 1) if ranges else None
    if name == "distilled":
        return MagiVariant(nearly_clean=fields["nearly_clean"], ranges=ranges, clean_range=clean_range)
    released = GuidanceScales()
    # Where the released scales switch a forward off it stays off: there the model was trained to need none.
    scales = replace(
        released,
        text=tuple(fields["text_scale"] if scale else 0.0 for scale in released.text),
        previous=tuple(fields["previous_scale"] if scale != 1 else 1.0 for scale in released.previous),
    )
    return MagiVariant(distilled=False, guidance=scales, ranges=ranges, clean_range=clean_range)


def kv_ranges(text: str) -> tuple[int, ...]:
    """``"5, 4, 3, 2"`` as numbers; empty text for no limit."""
    words = text.replace(",", " ").split()
    good = all(word.isdecimal() and int(word) > 0 for word in words)
    require(good, "kv_ranges", text, "whole numbers >= 1 with commas between them, such as 5, 4, 3, 2, or nothing")
    return tuple(int(word) for word in words)


class LoadMagiVAE(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowCacheLoadMagiVAE",
            display_name=VAE_NAME,
            category=CATEGORY,
            description="Loads MAGI-1's VAE for VAE Decode and VAE Encode. It works in tiles of 256 pixels by itself.",
            search_aliases=[*ALIASES, "vae loader"],
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=whole_models(folder_paths.get_filename_list(VAES)),
                    tooltip="Put the official vae folder, with its config.json, into models/vae.",
                )
            ],
            outputs=[io.Vae.Output(tooltip="For VAE Decode and VAE Encode.")],
        )

    @classmethod
    def validate_inputs(cls, vae_name: Any = MISSING) -> bool | str:
        return check(cls, vae_name=vae_name)

    @classmethod
    def execute(cls, vae_name: str) -> io.NodeOutput:
        with naming(VAE_NAME):
            path = listed_file(VAES, vae_name, "vae_name")
            try:
                return io.NodeOutput(load_host_vae(path))
            except SettingError as error:
                raise SettingError("vae_name", f"{error.field}: {error.value}", error.accepted) from error


class MagiPrompt(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        def switch(name: str, default: bool, tooltip: str) -> io.Input:
            return io.Boolean.Input(name, default=default, tooltip=tooltip, advanced=not default)

        return io.Schema(
            node_id="FlowCacheMagiPrompt",
            display_name=PROMPT_NAME,
            category=CATEGORY,
            description="A prompt for MAGI-1: cleaned, encoded with T5 v1.1 XXL, with its special tokens.",
            search_aliases=[*ALIASES, "clip text encode"],
            inputs=[
                io.Clip.Input("clip", tooltip="T5 v1.1 XXL (t5xxl) from Load CLIP with type pixart."),
                io.String.Input(
                    "text", multiline=True, dynamic_prompts=True, tooltip="A long, plain description of what happens."
                ),
                io.Combo.Input(
                    "special_tokens",
                    options=tables(),
                    tooltip=(
                        "special_tokens.npz as MAGI-1 ships it, in models/text_encoders. none: no special tokens; the "
                        "switches below must be off then."
                    ),
                ),
                switch("high_quality", True, "Ask for high quality, as the released scripts do."),
                switch("duration", True, "Tell every chunk how many are left, as the released scripts do."),
                io.Combo.Input(
                    "motion",
                    options=["unsaid", "static", "dynamic"],
                    tooltip="Ask for little or much movement.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "look",
                    options=["unsaid", "3d model", "2d animation"],
                    tooltip="Ask for the look of rendered or of drawn pictures.",
                    advanced=True,
                ),
                switch("borders", False, "Ask for black borders."),
            ],
            outputs=[io.Conditioning.Output(tooltip="For Basic Guider.")],
        )

    @classmethod
    def validate_inputs(cls, special_tokens: Any = MISSING) -> bool | str:
        return check(cls, special_tokens=special_tokens)

    @classmethod
    def execute(
        cls,
        clip: Any,
        text: str,
        special_tokens: str,
        high_quality: bool,
        duration: bool,
        motion: str,
        look: str,
        borders: bool,
    ) -> io.NodeOutput:
        switches = TokenSwitches(
            static=motion == "static",
            dynamic=motion == "dynamic",
            borders=borders,
            hq=high_quality,
            three_d=look == "3d model",
            two_d_anime=look == "2d animation",
            duration=duration,
        )
        with naming(PROMPT_NAME):
            table = read_table(special_tokens)
            return io.NodeOutput(conditioning(lambda: encode(clip, text), table, switches))


class MagiSchedule(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowCacheMagiSchedule",
            display_name=SCHEDULE_NAME,
            category=CATEGORY,
            description="The noise levels of MAGI-1's steps. Distilled weights know only these numbers of steps.",
            search_aliases=[*ALIASES, "scheduler", "sigmas"],
            inputs=[
                io.Combo.Input(
                    "steps",
                    options=[str(steps) for steps in DISTILLED_STEPS],
                    default="16",
                    tooltip="Steps of every chunk. 64 for base weights; fewer are faster and less exact.",
                ),
                io.Combo.Input(
                    "shortcut_mode",
                    options=list(SHORTCUTS),
                    tooltip="Only for 12 steps: where in each quarter the two short ones lie.",
                    advanced=True,
                ),
            ],
            outputs=[io.Sigmas.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, steps: str, shortcut_mode: str) -> io.NodeOutput:
        with naming(SCHEDULE_NAME):
            known = [str(count) for count in DISTILLED_STEPS]
            require(steps in known, "steps", steps, ", ".join(known))
            return io.NodeOutput(torch.tensor(magi(int(steps), shortcut_mode).sigmas))


class EmptyMagiLatent(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        side = {"default": 720, "min": 32, "max": 4096, "step": 16}
        return io.Schema(
            node_id="FlowCacheEmptyMagiLatent",
            display_name=LATENT_NAME,
            category=CATEGORY,
            description="An empty video for MAGI-1, in whole chunks of 24 frames: one second each.",
            search_aliases=[*ALIASES, "empty latent video"],
            inputs=[
                io.Int.Input("width", **side, tooltip="Pixels, a multiple of 16."),
                io.Int.Input("height", **side, tooltip="Pixels, a multiple of 16."),
                io.Int.Input(
                    "chunks", default=10, min=1, max=10000, tooltip="Seconds of video, those of a prefix included."
                ),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Videos at once.", advanced=True),
            ],
            outputs=[io.Latent.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(cls, width: int, height: int, chunks: int, batch_size: int) -> io.NodeOutput:
        with naming(LATENT_NAME):
            for name, count in (("chunks", chunks), ("batch_size", batch_size)):
                require_count(name, count, minimum=1)
            for name, pixels in (("width", width), ("height", height)):
                require(pixels % 16 == 0, name, pixels, f"a multiple of 16, such as {max(1, round(pixels / 16)) * 16}")
        shape = (batch_size, LATENT_CHANNELS, chunks * CHUNK_FRAMES, height // PIXELS, width // PIXELS)
        samples = torch.zeros(shape, device=comfy.model_management.intermediate_device())
        return io.NodeOutput({"samples": samples})
