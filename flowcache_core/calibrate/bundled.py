"""The bundled models as calibration and benchmarks run them. No benchmark's prompts are among those calibrated on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import mini, mini_magi
from ..engine import EngineSettings
from ..models.magi.denoiser import MagiDenoiser
from ..models.wan.denoiser import WanDenoiser
from ..models.wan.vae import WanVAE
from ..plan import PLANS
from ..schedule import shifted
from .runs import Setup, Specimen

PROMPTS = tuple(f"a {colour} {shape} moving {way}" for colour, shape, way in (
    ("blue", "circle", "left"), ("white", "square", "down"), ("red", "triangle", "right"), ("purple", "circle", "up"),
    ("yellow", "square", "right"), ("green", "triangle", "down"), ("white", "circle", "left"), ("blue", "square", "up"),
))  # fmt: skip


class Mini(Specimen):
    """The mini model; its weights are read when they are first needed."""

    name = "mini"
    plans = ("blockwise", "staggered", "window")
    default = Setup()
    prompts = PROMPTS

    @cached_property
    def model(self) -> mini.MiniModel:
        model = mini.load_mini()
        fast_on_cpu(model.vae)
        return model

    @cached_property
    def sha256(self) -> str:  # type: ignore[override]
        return digest(mini.TRANSFORMER_FILE)

    def settings(self, setup: Setup, **changes: Any) -> EngineSettings:
        chunk = self.model.chunk_frames
        plan = PLANS[setup.name].abreast(chunk, setup.steps).plan(setup.chunks * chunk, setup.steps)
        schedule = shifted(setup.steps, self.model.shift)
        return replace(EngineSettings(plan, schedule, solver=setup.solver, clean_pass=True), **changes)

    def denoiser(self, prompts: Sequence[str], setup: Setup) -> WanDenoiser:
        cond = torch.cat([self.model.encode_prompt(prompt) for prompt in prompts])
        uncond = self.model.encode_prompt("").expand_as(cond)
        return WanDenoiser(self.model.transformer, {0: (cond, uncond)}, setup.guidance)

    def noise(self, chunks: int, seed: int) -> Tensor:
        return self.model.noise(chunks, seed)

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.vae.decode(latents)

    def shift(self, setup: Setup) -> float:
        return self.model.shift


class MiniMagi(Specimen):
    """The mini MAGI: the sliding window, one forward per step as the distilled model has it."""

    name = "mini-magi"
    plans = ("window",)
    default = Setup("window", chunks=5, steps=64, guidance=1.0)
    prompts = PROMPTS

    @cached_property
    def model(self) -> mini_magi.MiniMagi:
        model = mini_magi.load_mini_magi()
        fast_on_cpu(model.vae)
        return model

    @cached_property
    def sha256(self) -> str:  # type: ignore[override]
        return digest(mini_magi.TRANSFORMER_FILE)

    def settings(self, setup: Setup, **changes: Any) -> EngineSettings:
        return self.model.settings(setup.chunks, setup.steps, **{"solver": setup.solver, **changes})

    def denoiser(self, prompts: Sequence[str], setup: Setup) -> MagiDenoiser:
        return self.model.denoiser(list(prompts), setup.guidance)

    def noise(self, chunks: int, seed: int) -> Tensor:
        return self.model.noise(chunks, seed)

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.vae.decode(latents)

    def shift(self, setup: Setup) -> float:
        return 3.0  # 1 - t of MAGI-1's rule is u'^2 shifted by 3, where u' falls evenly


def fast_on_cpu(vae: WanVAE) -> None:
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def digest(path: Path) -> str:
    """SHA-256 of a file, a piece at a time."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 24):
            found.update(piece)
    return found.hexdigest()
