"""The bundled models as calibration and benchmarks run them. No benchmark's prompts are among those calibrated on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import mini, mini_magi, mini_scenes
from ..engine import EngineSettings
from ..mini_scenes.data import Scene, random_scenes
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


SCENE_SEED = 2**42
"""Of the scenes that the scenes model is calibrated on: neither training nor evaluation draws from it."""


def scene_prompts(count: int, seed: int = SCENE_SEED) -> tuple[str, ...]:
    """Prompts of random scenes, those in which most happens (motion, camera, events) first."""

    def happens(scene: Scene) -> int:
        actors = sum((actor.motion != "resting") + bool(actor.enters) + bool(actor.turns) for actor in scene.actors)
        return actors + (scene.pan != "still") + bool(scene.back) + bool(scene.changes)

    return tuple(scene.prompt for scene in sorted(random_scenes(count, seed), key=happens, reverse=True))


class MiniWan(Specimen):
    """A bundled model of Wan's architecture; its weights are read when they are first needed.

    load, file: how its weights are read and the transformer's file.
    """

    plans = ("blockwise", "staggered", "window")
    load: ClassVar[Callable[[], mini.MiniModel]]
    file: ClassVar[Path]

    @cached_property
    def model(self) -> mini.MiniModel:
        model = type(self).load()
        fast_on_cpu(model.vae)
        return model

    @property
    def transformer(self) -> nn.Module:
        return self.model.transformer

    @cached_property
    def sha256(self) -> str:  # type: ignore[override]
        return digest(self.file)

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


class Mini(MiniWan):
    """The mini model: one shape on a plain ground."""

    name = "mini"
    default = Setup()
    prompts = PROMPTS
    load = staticmethod(mini.load_mini)
    file = mini.TRANSFORMER_FILE


class Scenes(MiniWan):
    """Mini scenes: several shapes, a camera, events. At the guidance it was evaluated with."""

    name = "scenes"
    default = Setup(guidance=mini_scenes.GUIDANCE)
    prompts = scene_prompts(len(PROMPTS))
    load = staticmethod(mini_scenes.load_mini_scenes)
    file = mini_scenes.TRANSFORMER_FILE
    batch = 8


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

    @property
    def transformer(self) -> nn.Module:
        return self.model.transformer

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


BUNDLED: dict[str, type[Specimen]] = {specimen.name: specimen for specimen in (Mini, Scenes, MiniMagi)}
