"""What can be run dry by name: models at their published sizes, with the runs they were published with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..denoiser import Denoiser
from ..engine.settings import EngineSettings
from ..errors import require
from ..kv.settings import KVSettings
from ..models.magi.config import MAGI_4_5B, MAGI_24B, MagiConfig
from ..models.magi.denoiser import NULL
from ..models.magi.text import NULL_TOKENS
from ..models.magi.transformer import MagiTransformer
from ..models.wan.denoiser import WanDenoiser
from ..models.wan.transformer import WanConfig, WanTransformer
from ..plan.blockwise import blockwise
from ..presets import load_preset, model_file
from ..schedule import shifted
from ..solvers.renoise import ReNoise
from ..video.magi import MagiSettings
from ..video.skyreels import SkyReelsSettings
from .run import Subject

WAN_1_3B = WanConfig(dim=1536, ffn_dim=8960, num_layers=30, num_heads=12)
WAN_14B = WanConfig(dim=5120, ffn_dim=13824, num_layers=40, num_heads=40)
SKYREELS = {
    "skyreels-v2-1.3b-540p": replace(WAN_1_3B, fps_embedding=True),
    "skyreels-v2-14b-540p": WAN_14B,
    "skyreels-v2-14b-720p": WAN_14B,
}
MAGI = {"magi-1-4.5b": MAGI_4_5B, "magi-1-24b": MAGI_24B}
MAGI_PRESETS = "magi-1-4.5b"
SELF_FORCING = "self-forcing-1.3b"
NAMES = (*SKYREELS, *MAGI, SELF_FORCING)
TEXT_TOKENS, CAPTION_ROWS = 512, 100


@contextmanager
def made_in(dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def subject(name: str, preset: str, kv: KVSettings, **changes: Any) -> Subject:
    """changes: fields of the run's settings (``policy``, ``steps``, ``frames``, ``reuse_device`` ...)."""
    require(name in NAMES, "model", name, ", ".join(NAMES))
    if name in SKYREELS:
        if load_preset(name, preset).attention == "bidirectional":
            kv = KVSettings()
        sky = SkyReelsSettings.of_preset(name, preset, kv=kv, **changes)
        windows, guidance = sky.engines, sky.guidance
        return Subject(_wan(SKYREELS[name], guidance), windows, sky.height // 8, sky.width // 8)
    if name in MAGI:
        magi = MagiSettings.of_preset(MAGI_PRESETS, preset, kv=kv, **changes)
        return Subject(_magi(MAGI[name], magi), (magi.engine(),), magi.height // 8, magi.width // 8)
    require(preset == "vanilla", "preset", preset, "vanilla: this model has no others")
    steps, frames = changes.pop("steps", 4), changes.pop("frames", 21)
    engine = EngineSettings(
        blockwise(frames, 3, steps), shifted(steps, 5.0), solver=ReNoise(), kv=kv, clean_pass=True, **changes
    )
    return Subject(_wan(WAN_1_3B, 1.0), (engine,), 60, 104)


def pixels_of(name: str, chunks: int) -> int:
    """The ``frames`` of :func:`subject` for a video of so many chunks."""
    if name == SELF_FORCING:
        return 3 * chunks
    run = model_file(MAGI_PRESETS if name in MAGI else name)["run"]
    latents = chunks * run["chunk_frames"]
    return 4 * latents if name in MAGI else 4 * (latents - 1) + 1


def _wan(config: WanConfig, guidance: float) -> Callable[[str], tuple[nn.Module, Denoiser]]:
    def build(device: str) -> tuple[nn.Module, Denoiser]:
        with made_in(torch.bfloat16), torch.device(device):
            model = WanTransformer(config).eval().requires_grad_(False)
            texts = [torch.empty(1, TEXT_TOKENS, config.text_dim) for _ in range(2)]
        return model, WanDenoiser(model, {0: texts}, guidance, 24)

    return build


def _magi(config: MagiConfig, settings: MagiSettings) -> Callable[[str], tuple[nn.Module, Denoiser]]:
    def build(device: str) -> tuple[nn.Module, Denoiser]:
        model = MagiTransformer(config, dtype=torch.bfloat16, device=device).eval().requires_grad_(False)
        caption = torch.empty(1, CAPTION_ROWS, config.text_dim, device=device)
        denoiser = settings.denoiser(model, {0: (caption, torch.ones(caption.shape[:2]))})
        # How many rows of a caption are seen is a value, which no fake tensor has.
        for key, count in ((0, CAPTION_ROWS), (NULL, NULL_TOKENS)):
            denoiser.rows[key, 1] = [torch.empty(count, config.dim, dtype=torch.bfloat16, device=device)]
        return model, denoiser

    return build
