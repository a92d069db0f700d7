"""AR Video Sampler (FlowCache): a SAMPLER that runs any plan, with the settings the MODEL carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io

from ..flowcache_core.engine.settings import ATTENTION
from ..flowcache_core.plan import PLANS, PlanSettings
from ..flowcache_core.released import RELEASED
from ..flowcache_core.solvers import SOLVERS
from .adapters.declared import Node
from .adapters.naming import CATEGORY, naming
from .adapters.run.plan_choice import AS_RELEASED, PlanChoice
from .adapters.run.sampler import ChunkSampler
from .adapters.shown.live_preview import Display
from .choices import MISSING, check
from .inputs import inputs_of

NAME = "AR Video Sampler (FlowCache)"


def clean_pass(default: bool) -> io.Input:
    return io.Boolean.Input(
        "clean_pass",
        default=default,
        tooltip=(
            "Run the model once more on every finished chunk, so that its K/V holds no leftover noise. Self-Forcing and"
            " Causal-Forcing need it; MAGI-1 was released with it."
        ),
    )


def released_model() -> io.Input:
    return io.Combo.Input(
        "model",
        options=list(RELEASED),
        tooltip=(
            "The model whose chunks, K/V window and sink are taken. Its noise levels come from AR Model Schedule; "
            "other ones, or a file of another size, are refused."
        ),
    )


def solver(default: str) -> io.Input:
    return io.Combo.Input(
        "solver",
        options=list(SOLVERS),
        default=default,
        tooltip=(
            "renoise: predict the clean chunk, then add fresh noise (few-step models). euler and unipc follow the "
            "velocity (models with many steps)."
        ),
    )


def whole_window() -> list[io.Input]:
    """For models that can run a whole window in one forward, and make longer videos in windows."""
    return [
        io.Combo.Input(
            "attention",
            options=list(ATTENTION),
            tooltip=(
                "block-causal: chunk by chunk with a K/V cache, what FlowCache speeds up. bidirectional: the whole "
                "window at every tick, as SkyReels-V2 was released. joint: the chunks in work in one forward, beside "
                "the K/V of finished ones (Rolling Forcing)."
            ),
        ),
        io.Int.Input(
            "window_frames",
            default=0,
            min=0,
            max=4096,
            tooltip=(
                "Latent frames the model sees at once; a longer video is made in overlapping windows. 25 for "
                "SkyReels-V2 at 97 frames; 0 for the whole video at once."
            ),
            advanced=True,
        ),
        io.Int.Input(
            "overlap_frames",
            default=5,
            min=1,
            max=4096,
            tooltip=(
                "Latent frames of a window that are the end of the one before it; whole chunks. Only with"
                " window_frames."
            ),
            advanced=True,
        ),
        io.Float.Input(
            "prefix_noise",
            optional=True,
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip=(
                "Noise level at which the model sees the clean prefix; 0.02 keeps long SkyReels-V2 videos from"
                " drifting."
            ),
            advanced=True,
        ),
    ]


def fields(kind: type[PlanSettings]) -> list[io.Input]:
    """The fields of one kind of plan."""
    return [
        *inputs_of(kind),
        solver(kind.solver),
        clean_pass(kind.clean_pass),
        *(whole_window() if kind.whole_window else ()),
    ]


class ARSampler(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowCacheARSampler",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Samples MAGI-1 and Wan-family autoregressive video models chunk by chunk: any length, CFG, LoRA, "
                "masks, and what FlowCache Chunkwise Reuse and KV Cache Compressor set on the model. For "
                "SamplerCustomAdvanced."
            ),
            search_aliases=[
                "self forcing",
                "causal forcing",
                "diffusion forcing",
                "skyreels",
                "magi",
                "sampler ar video",
                "flowcache",
            ],
            inputs=[
                io.DynamicCombo.Input(
                    "plan",
                    options=[
                        *(io.DynamicCombo.Option(kind.title, fields(kind)) for kind in PLANS.values()),
                        io.DynamicCombo.Option(AS_RELEASED, [released_model()]),
                    ],
                    tooltip=(
                        "In which order chunks are denoised. blockwise: one after the other (Self-Forcing, "
                        "Causal-Forcing). diffusion forcing: staggered (SkyReels-V2). sliding window: MAGI-1's order. "
                        "as released: chunks and K/V of a few-step model, as its authors run it."
                    ),
                ),
                io.Latent.Input(
                    "prefix",
                    optional=True,
                    tooltip=(
                        "Clean latent frames that the video begins with: VAE Encode of a start image, or the output of"
                        " an earlier run to continue it. They replace the first frames of latent_image."
                    ),
                ),
                io.Int.Input(
                    "prefix_frames",
                    default=0,
                    min=0,
                    max=4096,
                    optional=True,
                    tooltip="How many latent frames from the end of prefix are used; 0 for all of them.",
                    advanced=True,
                ),
                io.Vae.Input(
                    "preview_vae",
                    optional=True,
                    tooltip=(
                        "The model's VAE. With it, finished chunks are decoded and shown as a video on the node that"
                        " samples, while later ones still run. Costs a copy of its decoder beside the model, and the"
                        " decoding."
                    ),
                ),
                io.Int.Input(
                    "preview_fps",
                    default=16,
                    min=1,
                    max=240,
                    optional=True,
                    tooltip="Frames per second of that video: 16 for Self-Forcing, 24 for SkyReels-V2 and MAGI-1.",
                    advanced=True,
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustomAdvanced.")],
            accept_all_inputs=True,  # see choices.py
        )

    @classmethod
    def validate_inputs(cls, plan: Any = MISSING) -> bool | str:
        return check(cls, plan=plan)

    @classmethod
    def execute(
        cls,
        plan: Mapping[str, Any],
        prefix: Any = None,
        prefix_frames: int = 0,
        preview_vae: Any = None,
        preview_fps: int = 16,
        **_: Any,
    ) -> io.NodeOutput:
        with naming(NAME):
            display = Display(preview_vae, preview_fps)
            return io.NodeOutput(ChunkSampler(NAME, PlanChoice.of(plan), prefix, prefix_frames, display))
