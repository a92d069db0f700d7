"""KV Cache Compressor: MODEL in, MODEL out, with K/V settings on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io

from ..flowcache_core.errors import require
from ..flowcache_core.kv import COMPRESSORS
from ..flowcache_core.kv.auto import AutoKV
from ..flowcache_core.kv.settings import KVSettings
from ..flowcache_core.kv.storage import STORAGES, Plain
from ..flowcache_core.presets import load_preset, model_file, models
from .adapters.declared import Node
from .adapters.files.kv_profiles import own_profiles
from .adapters.naming import CATEGORY, naming
from .adapters.run.outer import with_kv
from .choices import MISSING, check
from .inputs import inputs_of, part_of

NAME = "KV Cache Compressor"
SAME = "same as the model"
DTYPES = {
    SAME: None,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}
DEVICES = {SAME: None, "cpu": "cpu"}
CUSTOM, AUTO = "custom", "auto (MB)"
REFERENCES = {
    f"{model} {name}": (model, name)
    for model in models()
    for name, row in model_file(model)["presets"].items()
    if row.get("kv")
}

MEGABYTES = io.Float.Input(
    "megabytes",
    default=4000.0,
    min=0.01,
    max=10_000_000.0,
    step=1.0,
    round=0.01,
    optional=True,
    tooltip="Millions of bytes that the K/V of a run may take, active chunks included. Too few is said before it runs.",
)


class KVCompressor(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FlowCacheKVCompressor",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Keeps the K/V cache of an autoregressive video model at a fixed size, whatever the video's length, "
                "by dropping the tokens that matter least. Connect it before an AR video sampler."
            ),
            search_aliases=["kv cache", "flowcache", "long video", "memory", "vram", "ar video", "rolling"],
            inputs=[
                io.Model.Input("model", tooltip="The autoregressive video model whose K/V is to be bounded."),
                io.Float.Input(
                    "budget",
                    default=4.0,
                    min=1.0,
                    max=10000.0,
                    step=0.25,
                    tooltip=(
                        "Finished chunks whose K/V is kept, beside the active ones. A budget of the video's length or "
                        "more changes nothing."
                    ),
                ),
                io.DynamicCombo.Input(
                    "method",
                    options=[io.DynamicCombo.Option(name, inputs_of(part)) for name, part in COMPRESSORS.items()],
                    tooltip=(
                        "How the tokens to keep are chosen. importance-redundancy is FlowCache; sink-window and recent "
                        "are sliding windows, shot-sink one with the start of the newest shot too; density keeps what "
                        "is unlike the rest, participative what the newest chunk points at, head-wise what each head "
                        "looks at; random is a control."
                    ),
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    tooltip="Number format of the stored K/V. fp8 halves the memory of 16 bits and costs some quality.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "device",
                    options=list(DEVICES),
                    tooltip="Where K/V is stored. cpu saves graphics memory and costs the transfer at every step.",
                    advanced=True,
                ),
                io.DynamicCombo.Input(
                    "storage",
                    options=[io.DynamicCombo.Option(name, inputs_of(part)) for name, part in STORAGES.items()],
                    optional=True,  # workflows made before it have none
                    tooltip=(
                        "How finished chunks are kept. plain: as they are. int8, int4, int2: in so many bits, with "
                        "scales. centroid: the nearest of a chunk's centroids and two bits. What is active stays as "
                        "computed."
                    ),
                ),
                io.DynamicCombo.Input(
                    "preset",
                    options=[
                        io.DynamicCombo.Option(CUSTOM, []),
                        io.DynamicCombo.Option(AUTO, [MEGABYTES]),
                        *(io.DynamicCombo.Option(name, []) for name in REFERENCES),
                    ],
                    optional=True,
                    tooltip=(
                        "custom: the fields above. auto (MB): say how much memory K/V may take; method, budget of "
                        "every layer and storage are chosen by measured error, and the node says which. The others: "
                        "what a published run kept, and how it chose."
                    ),
                ),
            ],
            outputs=[io.Model.Output(tooltip="The same model with these settings; sampled by an AR video sampler.")],
            accept_all_inputs=True,  # see choices.py
        )

    @classmethod
    def validate_inputs(cls, method: Any = MISSING, storage: Any = MISSING, preset: Any = MISSING) -> bool | str:
        later = {"storage": storage, "preset": preset}
        return check(cls, method=method, **{name: value for name, value in later.items() if value is not MISSING})

    @classmethod
    def execute(
        cls,
        model: Any,
        budget: float,
        method: Mapping[str, Any],
        dtype: str,
        device: str,
        storage: Mapping[str, Any] | None = None,
        preset: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> io.NodeOutput:
        with naming(NAME):
            kv = settings(budget, method, dtype, device, storage, preset)
            return io.NodeOutput(with_kv(model, kv))


def settings(
    budget: float,
    method: Mapping[str, Any],
    dtype: str,
    device: str,
    storage: Mapping[str, Any] | None = None,
    preset: Mapping[str, Any] | None = None,
) -> KVSettings:
    """What the node's fields say; without ``storage``, plain, without ``preset``, custom. SettingError names the field
    that cannot work."""
    require(dtype in DTYPES, "dtype", dtype, ", ".join(DTYPES))
    require(device in DEVICES, "device", device, ", ".join(DEVICES))
    chosen = preset["preset"] if preset else CUSTOM
    if chosen == AUTO and preset is not None:
        megabytes = preset.get("megabytes", MEGABYTES.default)
        return AutoKV(dtype=DTYPES[dtype], device=DEVICES[device], megabytes=megabytes, profiles=own_profiles())
    if chosen in REFERENCES:
        published = load_preset(*REFERENCES[chosen]).kv
        assert published is not None
        return replace(published, dtype=DTYPES[dtype], device=DEVICES[device])
    require(chosen == CUSTOM, "preset", chosen, ", ".join((CUSTOM, AUTO, *REFERENCES)))
    stored = part_of("storage", storage, STORAGES) if storage else Plain()
    return KVSettings(budget, part_of("method", method, COMPRESSORS), DTYPES[dtype], DEVICES[device], stored)
