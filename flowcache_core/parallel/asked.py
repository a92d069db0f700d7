"""What a starter asks of ranks that serve it, and what the first of them answers; each is one message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..engine import EngineSettings
from ..errors import Found, require
from ..models.common.checkpoint import read_state_dict
from ..models.common.sharded import read_sharded
from ..models.magi.denoiser import Caption, MagiDenoiser
from ..models.magi.guidance import GuidanceScales
from ..models.magi.transformer import load_magi
from ..models.wan.denoiser import WanDenoiser
from ..models.wan.load import wan_from_tensors
from ..models.wan.skyreels_checkpoint import official_config
from ..plan.shots import Shots
from ..report.events import Event
from .shape import MeshShape, Shareable


@dataclass(frozen=True)
class ModelFile:
    """A transformer by its file, or the index of its shards.

    stored: what its weights are rounded to, None for as they are in the file. computed: what is computed in. heads: of
    its queries, kv_heads of its keys; the file must say the same.
    """

    family: Literal["wan", "magi"]
    path: str
    heads: int
    kv_heads: int
    computed: torch.dtype
    stored: torch.dtype | None = None

    def shareable(self, branches: int) -> Shareable:
        return Shareable(branches, self.heads, self.kv_heads)

    def load(self) -> Any:
        """The transformer, on the CPU. SettingError when the file is damaged, gone, or another model's."""
        if self.family == "magi":
            model: Any = load_magi(self.path, self.computed)
            heads = model.config.num_heads
        else:
            path = Path(self.path)
            if path.name.endswith(".index.json"):
                tensors, metadata = read_sharded(path)
                metadata = {**metadata, **official_config(path.parent)}
            else:
                tensors, metadata = read_state_dict(path)
            model = wan_from_tensors(tensors, metadata, path, self.stored or self.computed).to(self.computed)
            heads = model.config.num_heads
        name = Path(self.path).name
        require(heads == self.heads, f"checkpoint {name}", Found(f"{heads} heads"), f"{self.heads}, as in this process")
        return model


@dataclass(frozen=True)
class WanRun:
    """A :class:`..models.wan.denoiser.WanDenoiser` without its transformer."""

    prompts: Mapping[int, Sequence[Tensor]]
    guidance: float = 1.0
    fps: int | None = None
    shots: Shots = Shots()

    def denoiser(self, transformer: Any, device: torch.device) -> WanDenoiser:
        prompts = {start: [text.to(device) for text in texts] for start, texts in self.prompts.items()}
        return WanDenoiser(transformer, prompts, self.guidance, self.fps, self.shots)


@dataclass(frozen=True)
class MagiRun:
    """A :class:`..models.magi.denoiser.MagiDenoiser` without its transformer."""

    captions: Mapping[int, Caption]
    guidance: GuidanceScales | None = None
    step_times: tuple[float, ...] = ()
    nearly_clean: bool = True
    ranges: tuple[int, ...] = ()
    clean_range: int | None = None

    def denoiser(self, transformer: Any, device: torch.device) -> MagiDenoiser:
        captions = {start: (states.to(device), mask.to(device)) for start, (states, mask) in self.captions.items()}
        own = (self.guidance, self.step_times, self.nearly_clean, self.ranges, self.clean_range)
        return MagiDenoiser(transformer, captions, *own)


@dataclass(frozen=True)
class Begin:
    """The first message to every rank. device: "cpu" or "cuda", the card of the rank's number."""

    model: ModelFile
    shape: MeshShape
    device: str
    timeout: float


@dataclass(frozen=True)
class Ready:
    """The model is loaded on every rank."""


@dataclass(frozen=True)
class Window:
    """One run of the engine: as :func:`..engine.generate`, and ``seed`` of a :func:`..noise.host_noise`."""

    run: WanRun | MagiRun
    settings: EngineSettings
    noise: Tensor
    seed: int
    prefix: Tensor | None = None


@dataclass(frozen=True)
class Told:
    """An event of the run. clean: with a step that was computed, the chunk's clean prediction ``[B, C, f, H, W]``."""

    event: Event
    clean: Tensor | None = None


@dataclass(frozen=True)
class Finished:
    """latents: of the window. sent: bytes that left the first rank for others."""

    latents: Tensor
    sent: int
