"""The ComfyUI nodes: schema, checks and one call into the core each."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import before, choices
from .adapters.shown import page, recent_runs
from .calibrate import Calibrate
from .compare import Compare
from .kv import KVCompressor
from .loaders import LoadARModel
from .magi import EmptyMagiLatent, LoadMagiModel, LoadMagiVAE, MagiPrompt, MagiSchedule
from .mini import MiniModel, MiniPrompt
from .multi_gpu import MultiGPU
from .presets import Preset
from .prompts import PromptSchedule
from .released import ReleasedSchedule
from .report import Report
from .reuse import ChunkwiseReuse
from .samplers import ARSampler
from .sparse import SparseAttention

NODES: tuple[type[io.ComfyNode], ...] = (
    LoadARModel,
    LoadMagiModel,
    LoadMagiVAE,
    MagiPrompt,
    MagiSchedule,
    EmptyMagiLatent,
    MiniModel,
    MiniPrompt,
    ChunkwiseReuse,
    KVCompressor,
    SparseAttention,
    MultiGPU,
    Calibrate,
    Preset,
    Compare,
    ARSampler,
    ReleasedSchedule,
    PromptSchedule,
    Report,
)


class FlowCacheExtension(ComfyExtension):
    async def on_load(self) -> None:
        before.register()
        choices.register({kind.define_schema().node_id: kind for kind in NODES})
        recent_runs.serve()
        page.serve()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)
