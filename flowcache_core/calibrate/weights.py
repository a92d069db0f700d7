"""Released models as calibration runs them: weights and encoded prompts from files, one video at a time.

A file of prompts is a .safetensors with ``prompt`` ``[n, tokens, dim]`` and, for guidance, ``negative``
``[1 or n, tokens, dim]``; for MAGI-1 also ``mask`` ``[n, tokens]`` of 0 and 1. Text encoders are the caller's.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine import EngineSettings
from ..errors import SettingError, require, require_count
from ..models.common.checkpoint import read_state_dict
from ..models.magi.config import LATENT_CHANNELS
from ..models.magi.denoiser import MagiDenoiser
from ..models.magi.text import chunk_captions
from ..models.magi.transformer import MagiTransformer, load_magi
from ..models.magi.vae import LATENT_SCALE, MagiVAE, Tiling, load_magi_vae
from ..models.wan.denoiser import WanDenoiser
from ..models.wan.load import load_wan
from ..models.wan.skyreels_checkpoint import load_skyreels
from ..models.wan.transformer import WanTransformer
from ..models.wan.vae import SPATIAL_STRIDE, WanVAE, load_wan_vae
from ..noise import window_noise
from ..plan import blockwise
from ..presets import model_file
from ..schedule import shifted
from ..solvers.renoise import ReNoise
from ..solvers.unipc import UniPC
from ..video.magi import TIME_STRIDE as MAGI_STRIDE
from ..video.magi import MagiSettings
from ..video.skyreels import SkyReelsSettings, pixel_frames
from .bundled import digest
from .runs import Setup, Specimen


@dataclass(frozen=True)
class Files:
    """weights: of the transformer, as the model's loader takes them. vae: None for recordings alone. height, width:
    pixels, None for the released size."""

    weights: Path
    prompts: Path
    vae: Path | None = None
    height: int | None = None
    width: int | None = None
    device: str = "cpu"


class Released(Specimen):
    """What the released models share. size: pixels, height and width, when nothing else is asked for."""

    batch = 1
    size: tuple[int, int]

    def __init__(self, files: Files) -> None:
        self.files, self.decodes = files, files.vae is not None
        self.text = read_prompts(files.prompts, files.device)
        self.prompts = tuple(f"{files.prompts.name} {i}" for i in range(len(self.text["prompt"])))
        height, width = self.size
        self.height, self.width = files.height or height, files.width or width
        for name, pixels in (("height", self.height), ("width", self.width)):
            require_count(name, pixels, minimum=16)
            require(pixels % 16 == 0, name, pixels, "a multiple of 16")

    @cached_property
    def sha256(self) -> str:  # type: ignore[override]
        """ "" for a folder of shards."""
        return digest(self.files.weights) if self.files.weights.is_file() else ""

    @property
    def prompts_sha256(self) -> str:
        found = hashlib.sha256()
        for key, value in sorted(self.text.items()):
            found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    def row(self, prompts: Sequence[str], key: str) -> Tensor:
        """``[1, ...]``: what the file of prompts holds for the one prompt of this run."""
        require(len(prompts) == 1, "prompts", len(prompts), "one at a time")
        found = self.text[key]
        index = self.prompts.index(prompts[0]) if len(found) > 1 else 0
        return found[index : index + 1]

    @abstractmethod
    def latent_frames(self, chunks: int) -> int: ...

    def noise(self, chunks: int, seed: int) -> Tensor:
        side = (self.height // SPATIAL_STRIDE, self.width // SPATIAL_STRIDE)
        shape = (1, LATENT_CHANNELS, self.latent_frames(chunks), *side)
        return window_noise(seed, 0, shape).to(self.files.device)

    def vae_file(self) -> Path:
        if self.files.vae is None:
            raise SettingError("vae", None, "the file of the model's autoencoder: probe runs are decoded")
        return self.files.vae


class SkyReels(Released):
    """SkyReels-V2 Diffusion Forcing: the published run, one window of staggered chunks."""

    name = "skyreels"
    plans = ("staggered",)

    def __init__(self, files: Files) -> None:
        self.run = model_file("skyreels-v2-1.3b-540p")["run"]
        self.size = (self.run["height"], self.run["width"])
        self.default = Setup("staggered", 5, self.run["steps"], SkyReelsSettings.guidance, UniPC())
        super().__init__(files)

    @cached_property
    def transformer(self) -> WanTransformer:
        return load_skyreels(self.files.weights).to(self.files.device)

    @cached_property
    def vae(self) -> WanVAE:
        return load_wan_vae(self.vae_file(), device=self.files.device)

    def latent_frames(self, chunks: int) -> int:
        return chunks * int(self.run["chunk_frames"])

    def settings(self, setup: Setup, **changes: Any) -> EngineSettings:
        frames = pixel_frames(self.latent_frames(setup.chunks))
        video = SkyReelsSettings(
            frames=frames,
            base_frames=frames,
            height=self.height,
            width=self.width,
            steps=setup.steps,
            shift=self.run["shift"],
            chunk_frames=self.run["chunk_frames"],
            ar_step=self.run["ar_step"],
        )
        return replace(video.engines[0], **{"solver": setup.solver, **changes})

    def denoiser(self, prompts: Sequence[str], setup: Setup) -> WanDenoiser:
        keys = ("prompt", "negative") if setup.guidance > 1 else ("prompt",)
        fps = SkyReelsSettings.fps if self.transformer.config.fps_embedding else None
        return WanDenoiser(self.transformer, {0: [self.row(prompts, key) for key in keys]}, setup.guidance, fps)

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)

    def shift(self, setup: Setup) -> float:
        return float(self.run["shift"])


class CausalWan(Released):
    """Causal Wan 2.1 (Self-Forcing, Causal-Forcing): chunk after chunk, each encoded again once it is clean."""

    name = "wan"
    plans = ("blockwise",)
    default = Setup("blockwise", 7, 4, 1.0, ReNoise())
    size = (480, 832)
    chunk_frames, model_shift = 3, 5.0

    @cached_property
    def transformer(self) -> WanTransformer:
        return load_wan(self.files.weights).to(self.files.device)

    @cached_property
    def vae(self) -> WanVAE:
        return load_wan_vae(self.vae_file(), device=self.files.device)

    def latent_frames(self, chunks: int) -> int:
        return chunks * self.chunk_frames

    def settings(self, setup: Setup, **changes: Any) -> EngineSettings:
        plan = blockwise(self.latent_frames(setup.chunks), self.chunk_frames, setup.steps)
        schedule = shifted(setup.steps, self.model_shift)
        return replace(EngineSettings(plan, schedule, solver=setup.solver, clean_pass=True), **changes)

    def denoiser(self, prompts: Sequence[str], setup: Setup) -> WanDenoiser:
        keys = ("prompt", "negative") if setup.guidance > 1 else ("prompt",)
        return WanDenoiser(self.transformer, {0: [self.row(prompts, key) for key in keys]}, setup.guidance)

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents)

    def shift(self, setup: Setup) -> float:
        return self.model_shift


class Magi(Released):
    """MAGI-1, distilled: the sliding window, one forward per step; captions without special tokens."""

    name = "magi"
    plans = ("window",)

    def __init__(self, files: Files) -> None:
        self.run = model_file("magi-1-4.5b")["run"]
        self.size = (self.run["height"], self.run["width"])
        self.default = Setup("window", 6, self.run["steps"], 1.0)
        super().__init__(files)
        require("mask" in self.text, "prompts", sorted(self.text), "prompt and mask, as T5 encodes them")

    @cached_property
    def transformer(self) -> MagiTransformer:
        return load_magi(self.files.weights).to(self.files.device)

    @cached_property
    def vae(self) -> MagiVAE:
        return load_magi_vae(self.vae_file()).to(self.files.device)

    def latent_frames(self, chunks: int) -> int:
        return chunks * int(self.run["chunk_frames"])

    def video(self, setup: Setup) -> MagiSettings:
        return MagiSettings(
            frames=MAGI_STRIDE * self.latent_frames(setup.chunks),
            height=self.height,
            width=self.width,
            steps=setup.steps,
            chunk_frames=self.run["chunk_frames"],
            window_chunks=self.run["window_chunks"],
        )

    def settings(self, setup: Setup, **changes: Any) -> EngineSettings:
        require(setup.guidance <= 1, "guidance", setup.guidance, "1: distilled weights take no guidance")
        return replace(self.video(setup).engine(), **{"solver": setup.solver, **changes})

    def denoiser(self, prompts: Sequence[str], setup: Setup) -> MagiDenoiser:
        caption, mask = self.row(prompts, "prompt")[0], self.row(prompts, "mask")[0]
        config = self.transformer.config
        states, kept = chunk_captions(caption, mask, 1, dim=config.text_dim, length=config.text_len)
        return self.video(setup).denoiser(self.transformer, {0: (states, kept)})

    def decode(self, latents: Tensor) -> Tensor:
        return torch.cat(list(self.vae.decode_parts(latents / LATENT_SCALE, Tiling())), 2)

    def shift(self, setup: Setup) -> float:
        return 3.0


RELEASED: dict[str, type[Released]] = {specimen.name: specimen for specimen in (SkyReels, CausalWan, Magi)}


def read_prompts(path: Path, device: str) -> dict[str, Tensor]:
    """The tensors of a file of prompts. SettingError naming what is missing."""
    tensors, _ = read_state_dict(path)
    require("prompt" in tensors, f"prompts {path.name}", sorted(tensors), "a tensor named prompt [n, tokens, dim]")
    count = len(tensors["prompt"])
    for key in ("prompt", "negative", "mask"):
        if key in tensors:
            shape, dims = tuple(tensors[key].shape), 2 if key == "mask" else 3
            fits = len(shape) == dims and shape[0] in (1, count)
            require(fits, f"prompts {path.name}: {key}", shape, f"{count} rows, {dims} dimensions")
    return {key: value.to(device) for key, value in tensors.items() if key in ("prompt", "negative", "mask")}
