"""What can be run dry by name: models at their published sizes, or a user's own file, with the runs they are for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..cost.shapes import MagiShape, ModelShape, WanShape
from ..denoiser import Denoiser
from ..engine.settings import EngineSettings
from ..errors import SettingError, require
from ..kv.settings import KVSettings
from ..models.common.sharded import read_sharded
from ..models.magi.config import MAGI_24B, MagiConfig
from ..models.magi.denoiser import NULL
from ..models.magi.text import NULL_TOKENS
from ..models.magi.transformer import MagiTransformer
from ..models.wan.config import HEAD_DIM, WanConfig
from ..models.wan.denoiser import WanDenoiser
from ..models.wan.keys import transformer_tensors
from ..models.wan.skyreels_checkpoint import SIZES, official_config
from ..models.wan.transformer import WanTransformer
from ..plan.blockwise import blockwise
from ..presets import kind_of, model_file, models
from ..schedule import shifted
from ..solvers.renoise import ReNoise
from ..video.magi import MagiSettings
from ..video.skyreels import SkyReelsSettings
from .run import Subject

Config = WanConfig | MagiConfig
SELF_FORCING = "self-forcing-1.3b"
# Models without presets of their own: whose runs they take.
ALIKE = {"magi-1-24b": "magi-1-4.5b"}
TEXT_TOKENS, CAPTION_ROWS = 512, 100


def names() -> tuple[str, ...]:
    """Of published sizes; bundled models, whose presets name a file, are small enough to be run."""
    return (*(model for model in models() if kind_of(model) and "file" not in model_file(model)), *ALIKE, SELF_FORCING)


def published(name: str) -> str:
    """The model whose presets and run ``name`` takes."""
    return ALIKE.get(name, name)


def config_of(name: str) -> Config:
    """A model's published size."""
    if name in ALIKE:
        return MAGI_24B
    if name == SELF_FORCING:  # Wan 2.1 1.3B, which SkyReels-V2 1.3B was trained from; it added the frame rate
        return replace(_wan_config(model_file("skyreels-v2-1.3b-540p")["shape"]), fps_embedding=False)
    shape = model_file(name)["shape"]
    return _magi_config(shape) if shape["kind"] == "magi" else _wan_config(shape)


def _wan_config(shape: Mapping[str, Any]) -> WanConfig:
    dim = shape["dim"]
    return WanConfig(dim, shape["ffn_dim"], shape["layers"], dim // HEAD_DIM, fps_embedding=SIZES[dim][1])


def _magi_config(shape: Mapping[str, Any]) -> MagiConfig:
    dim, heads = shape["dim"], shape["kv_dim"] // HEAD_DIM
    return MagiConfig(dim, shape["ffn_dim"], shape["layers"], dim // HEAD_DIM, heads, HEAD_DIM, dim // 4)


def config_in(weights: Path, name: str) -> Config:
    """The size of the model in a user's file or folder, which runs as ``name`` does. SettingError for another kind."""
    field = f"weights {weights.name}"
    try:
        tensors, metadata = read_sharded(weights)
        if kind_of(published(name)) == "magi":
            return MagiConfig.from_state_dict(tensors)
        if weights.is_dir():
            metadata = {**metadata, **official_config(weights)}
        return WanConfig.from_state_dict(transformer_tensors(tensors, field), metadata)
    except SettingError as error:
        raise error.within(field) from error


@dataclass(frozen=True)
class Job:
    """A subject with what the closed count needs: its shape, tokens of a latent frame and guidance branches."""

    subject: Subject
    shape: ModelShape
    tokens_per_frame: int
    branches: int


def job(name: str, preset: str, kv: KVSettings, config: Config | None = None, **changes: Any) -> Job:
    """config: instead of the published size. changes: fields of the run's settings (``policy``, ``steps`` ...)."""
    require(name in names(), "model", name, ", ".join(names()))
    config = config or config_of(name)
    if isinstance(config, MagiConfig):
        magi = MagiSettings.of_preset(published(name), preset, kv=kv, **changes)
        shape = MagiShape.of(config, 3 * magi.steps // 4 if magi.nearly_clean else None, CAPTION_ROWS)
        return _job(_magi(config, magi), (magi.engine(),), magi.height // 8, magi.width // 8, shape, 1)
    if name == SELF_FORCING:
        require(preset == "vanilla", "preset", preset, "vanilla: this model has no others")
        steps, frames = changes.pop("steps", 4), changes.pop("frames", 21)
        high, wide = changes.pop("height", 480) // 8, changes.pop("width", 832) // 8
        plan, schedule = blockwise(frames, 3, steps), shifted(steps, 5.0)
        engine = EngineSettings(plan, schedule, solver=ReNoise(), kv=kv, clean_pass=True, **changes)
        return _job(_wan(config, 1.0), (engine,), high, wide, WanShape.of(config), 1)
    sky = SkyReelsSettings.of_preset(name, preset, kv=kv, **changes)
    return _job(_wan(config, sky.guidance), sky.engines, sky.height // 8, sky.width // 8, WanShape.of(config), 2)


def _job(
    build: Callable[[str], tuple[nn.Module, Denoiser]],
    windows: tuple[EngineSettings, ...],
    height: int,
    width: int,
    shape: ModelShape,
    branches: int,
) -> Job:
    return Job(Subject(build, windows, height, width), shape, (height // 2) * (width // 2), branches)


def pixels_of(name: str, chunks: int) -> int:
    """The ``frames`` of :func:`job` for a video of so many chunks."""
    if name == SELF_FORCING:
        return 3 * chunks
    latents = chunks * model_file(published(name))["run"]["chunk_frames"]
    return 4 * latents if kind_of(published(name)) == "magi" else 4 * (latents - 1) + 1


@contextmanager
def made_in(dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _wan(config: WanConfig, guidance: float) -> Callable[[str], tuple[nn.Module, Denoiser]]:
    def build(device: str) -> tuple[nn.Module, Denoiser]:
        with made_in(torch.bfloat16), torch.device(device):
            model = WanTransformer(config).eval().requires_grad_(False)
            texts = [torch.zeros(1, TEXT_TOKENS, config.text_dim) for _ in range(2)]
        return model, WanDenoiser(model, {0: texts}, guidance, 24)

    return build


def _magi(config: MagiConfig, settings: MagiSettings) -> Callable[[str], tuple[nn.Module, Denoiser]]:
    def build(device: str) -> tuple[nn.Module, Denoiser]:
        model = MagiTransformer(config, dtype=torch.bfloat16, device=device).eval().requires_grad_(False)
        caption = torch.zeros(1, CAPTION_ROWS, config.text_dim, device=device)
        denoiser = settings.denoiser(model, {0: (caption, torch.ones(caption.shape[:2]))})
        # How many rows of a caption are seen is a value, which no fake tensor has.
        for key, count in ((0, CAPTION_ROWS), (NULL, NULL_TOKENS)):
            denoiser.rows[key, 1] = [torch.zeros(count, config.dim, dtype=torch.bfloat16, device=device)]
        return model, denoiser

    return build
