"""Load AR Video Model: Wan-family checkpoints of autoregressive models, as their authors publish them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import folder_paths
from comfy_api.latest import io

from .adapters.declared import Node
from .adapters.files.checkpoints import FAMILIES, WEIGHT_DTYPES, load_ar_model
from .adapters.files.listed import listed_file
from .adapters.files.weight_files import whole_models
from .adapters.naming import CATEGORY, naming
from .adapters.run.outer import with_slot
from .choices import MISSING, check

NAME = "Load AR Video Model"
FOLDER = "diffusion_models"
FPS = {"24": 24, "16": 16}


class LoadARModel(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        fps = io.Combo.Input(
            "fps", options=list(FPS), tooltip="Frame rate the model is told; SkyReels-V2 knows 24 (as released) and 16."
        )
        fields: dict[str, list[io.Input]] = {"auto": [], "causal wan": [], "skyreels-v2-df": [fps]}
        return io.Schema(
            node_id="FlowCacheLoadARModel",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Loads Self-Forcing, Causal-Forcing, Krea, LongLive, SkyReels-V2 DF and similar Wan 2.1 files, also "
                "raw training checkpoints (.pt) whose weights lie inside another dictionary."
            ),
            search_aliases=["self forcing", "causal forcing", "skyreels", "longlive", "krea", "causvid", "unet loader"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=whole_models(folder_paths.get_filename_list(FOLDER)),
                    tooltip=(
                        "A file of models/diffusion_models, or the index of a folder of shards. A .pt file is read as"
                        " plain weights only, never as a program."
                    ),
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    tooltip="Number format of the weights in memory. K/V keeps the format the model computes in.",
                    advanced=True,
                ),
                io.DynamicCombo.Input(
                    "family",
                    options=[io.DynamicCombo.Option(name, fields[name]) for name in FAMILIES],
                    tooltip=(
                        "auto: SkyReels-V2 1.3B by its frame-rate embedding, everything else as a causal Wan model. "
                        "SkyReels-V2 14B has none and looks like any Wan 2.1 14B: choose skyreels-v2-df for it."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="Ready for AR Video Sampler (FlowCache) or ComfyUI's Sampler AR Video.")],
            accept_all_inputs=True,  # see choices.py
        )

    @classmethod
    def validate_inputs(cls, model_name: Any = MISSING, family: Any = MISSING) -> bool | str:
        return check(cls, model_name=model_name, family=family)

    @classmethod
    def execute(cls, model_name: str, weight_dtype: str, family: Mapping[str, Any], **_: Any) -> io.NodeOutput:
        with naming(NAME):
            path = listed_file(FOLDER, model_name, "model_name")
            fps = FPS[family.get("fps", "24")]
            return io.NodeOutput(with_slot(load_ar_model(path, weight_dtype, family["family"], fps)))
