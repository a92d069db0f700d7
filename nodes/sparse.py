"""FlowCache Sparse Attention: MODEL in, MODEL out, with sparse attention on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io, ui

from ..flowcache_core.errors import SettingError
from ..flowcache_core.presets.sparse import load_sparse, sparse_names
from ..flowcache_core.sparse.build import CHOICES
from ..flowcache_core.sparse.calibrated import Calibrated
from ..flowcache_core.sparse.mask_reuse import MaskReuse
from ..flowcache_core.sparse.settings import SparseSettings
from .adapters.declared import Node
from .adapters.naming import CATEGORY, naming
from .adapters.run.outer import with_sparse
from .adapters.run.sparse import NAME, described
from .adapters.shown.running_node import show_text
from .choices import MISSING, check
from .inputs import chosen, inputs_of, part_of, placed_inputs


class SparseAttention(Node):
    @classmethod
    def define_schema(cls) -> io.Schema:
        rows = [io.DynamicCombo.Option(name, calibrated_inputs()) for name in sparse_names()]
        custom = [io.DynamicCombo.Option(name, inputs_of(kind)) for name, kind in CHOICES.items()]
        return io.Schema(
            node_id="FlowCacheSparseAttention",
            display_name=NAME,
            category=CATEGORY,
            description=(
                "Leaves out the blocks of self-attention that hold little of it, head by head. Pays for long contexts "
                "at 720p and more without SageAttention; little at 480p with few steps, nothing with a K/V budget of "
                "1 or 2 chunks. Connect it before an AR video sampler."
            ),
            search_aliases=["sparse attention", "xattention", "haste", "block sparse", "flex attention", "flowcache"],
            inputs=[
                io.Model.Input("model", tooltip="The autoregressive video model to speed up."),
                io.DynamicCombo.Input(
                    "preset",
                    options=[*custom, *rows],
                    tooltip=(
                        "How blocks are chosen. xattention: those that hold the share p of a row's attention. MODEL: "
                        "rows: the same with p for every head, calibrated on that model. top-k and window: the same "
                        "number in every row, the best or the nearest; controls."
                    ),
                ),
                *inputs_of(SparseSettings),
                io.Boolean.Input(
                    "mask_reuse",
                    default=False,
                    tooltip=(
                        "A mask serves again at later steps until its head has drifted. Saves little: choosing is "
                        "cheap."
                    ),
                ),
                *inputs_of(MaskReuse),
            ],
            outputs=[io.Model.Output(tooltip="The same model with these settings; sampled by an AR video sampler.")],
            accept_all_inputs=True,  # see choices.py
        )

    @classmethod
    def validate_inputs(cls, preset: Any = MISSING) -> bool | str:
        return check(cls, preset=preset)

    @classmethod
    def execute(cls, model: Any, preset: Mapping[str, Any], **fields: Any) -> io.NodeOutput:
        with naming(NAME):
            sparse = settings(preset, fields)
            patched = with_sparse(model, sparse)
        text = described(sparse, model.model.diffusion_model)
        show_text(text)
        return io.NodeOutput(patched, ui=ui.PreviewText(text))


def calibrated_inputs() -> list[io.Input]:
    return [made for place, made in placed_inputs([Calibrated]) if made.id == "density"]


def settings(preset: Mapping[str, Any], fields: Mapping[str, Any]) -> SparseSettings:
    """What the node's fields say. SettingError names the field that cannot work."""
    name, rows = preset["preset"], sparse_names()
    if name in CHOICES:
        method = part_of("preset", preset, CHOICES)
    elif name in rows:
        method = load_sparse(*rows[name]).at(preset.get("density"))
    else:
        raise SettingError("preset", name, ", ".join((*CHOICES, *rows)))
    reuse = MaskReuse(**chosen(MaskReuse, fields)) if fields.get("mask_reuse") else None
    return SparseSettings(method, **chosen(SparseSettings, fields), reuse=reuse)
