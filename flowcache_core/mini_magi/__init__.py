"""The bundled mini MAGI: MAGI-1's architecture with 1.7 M parameters, trained on the mini model's generated videos.

It shares the mini model's autoencoder, language and chunks (three latent frames), so that the sliding window, its
guidance, reuse and compression can be seen and measured on a CPU. `load_mini_magi()` is the entrance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..engine import EngineSettings
from ..mini import VAE_FILE, encode_prompt, metadata
from ..mini.clip_pool import CHUNK_FRAMES
from ..mini.data import FRAME_SIZE
from ..mini.text import VOCABULARY
from ..models.magi.denoiser import MagiDenoiser
from ..models.magi.guidance import CLEAN_TIME, GuidanceScales
from ..models.magi.transformer import MagiTransformer, load_magi
from ..models.wan.vae import WanVAE, load_wan_vae
from ..noise import window_noise
from ..plan.window import window
from ..schedule import magi

WEIGHTS = Path(__file__).parent / "weights"
TRANSFORMER_FILE = WEIGHTS / "flowcache_mini_magi.safetensors"
WINDOW_CHUNKS = 4
STEPS = 32
TEXT_SCALE = 2.0

__all__ = ["MiniMagi", "load_mini_magi"]


def text_guidance(scale: float) -> GuidanceScales | None:
    """Guidance by the text alone, the same at all times; 1 and below is one forward without guidance."""
    return GuidanceScales((0.0,), (1.0,), (scale,)) if scale > 1 else None


@dataclass(frozen=True)
class MiniMagi:
    """Everything a run needs. Sizes in pixels and latent frames; `provenance` says how each file came about."""

    transformer: MagiTransformer
    vae: WanVAE
    encode_prompt: Callable[[str], Tensor]
    chunk_frames: int
    frame_size: int
    fps: int
    vocabulary: tuple[str, ...]
    provenance: Mapping[str, Mapping[str, str]]
    window_chunks: int = WINDOW_CHUNKS
    steps: int = STEPS
    guidance: float = TEXT_SCALE

    def noise(self, chunks: int, seed: int) -> Tensor:
        """Standard normal latents [1, 16, 3 * chunks, 8, 8], drawn on the CPU whatever device computes."""
        side = self.frame_size // 8
        shape = (1, 16, chunks * self.chunk_frames, side, side)
        return window_noise(seed, 0, shape).to(self.transformer.rope.bands.device)

    def settings(self, chunks: int, steps: int | None = None, **changes: Any) -> EngineSettings:
        """The sliding-window run with the clean pass; ``changes``: other fields of EngineSettings."""
        steps = steps or self.steps
        values: dict[str, Any] = {"clean_pass": True, "clean_timestep": CLEAN_TIME, **changes}
        plan = window(chunks * self.chunk_frames, self.chunk_frames, steps, self.window_chunks)
        return EngineSettings(plan, magi(steps), **values)

    def denoiser(self, prompts: Sequence[str], guidance: float | None = None) -> MagiDenoiser:
        """For a batch with one prompt each, guided by the text (see :func:`text_guidance`)."""
        text = torch.cat([self.encode_prompt(prompt) for prompt in prompts]).to(self.transformer.rope.bands.device)
        scales = text_guidance(self.guidance if guidance is None else guidance)
        return MagiDenoiser(self.transformer, {0: (text, text.new_ones(text.shape[:2]))}, scales)


def load_mini_magi(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> MiniMagi:
    """The mini MAGI with its weights on `device`, in `dtype` (the autoencoder too). Takes a fraction of a second.

    Raises:
        SettingError: a weight file is missing or damaged; the message names it.
    """
    return MiniMagi(
        transformer=load_magi(TRANSFORMER_FILE, dtype).to(device),
        vae=load_wan_vae(VAE_FILE, device=device, dtype=dtype),
        encode_prompt=encode_prompt,
        chunk_frames=CHUNK_FRAMES,
        frame_size=FRAME_SIZE,
        fps=16,
        vocabulary=VOCABULARY,
        provenance={path.stem: metadata(path) for path in (TRANSFORMER_FILE, VAE_FILE)},
    )
