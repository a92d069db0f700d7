"""SkyReels-V2 diffusion forcing: a video of any length, window by window (arXiv 2504.13074), with FlowCache's parts.

Latent frames are counted from pixel frames as the autoencoder does: one for the first, one for every four after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from ..engine import ATTENTION, EngineSettings, generate
from ..errors import listed, require, require_count, require_finite
from ..fields import require_types
from ..kv.settings import KVSettings
from ..models.wan.denoiser import WanDenoiser
from ..models.wan.transformer import WanTransformer
from ..models.wan.vae import SPATIAL_STRIDE, TIME_STRIDE, StreamDecoder, WanVAE
from ..noise import conditioning_seed, seeded_noise, window_noise
from ..plan.base import MOST_FRAMES
from ..plan.staggered import VideoWindow, overlap_windows, staggered
from ..presets import published_run
from ..report.events import ChunkFinished, Event
from ..reuse.base import ReusePolicy
from ..reuse.never import Never
from ..reuse.quantity import Quantity, Velocity
from ..schedule import skyreels
from ..solvers.unipc import UniPC
from .base import Film, fitted, require_size

OVERLAP, CONTINUE = EXTENSIONS = ("overlap", "continue")
# What the model was published with as the unconditional text; text encoders are the caller's.
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，"
    "倒着走"
)


@dataclass(frozen=True)
class SkyReelsSettings:
    """Everything but weights, prompt and seed; the defaults are the published 540P run of one window.

    frames, base_frames, overlap_frames: pixel frames of the video, of the model's window and of the end of a window
    that begins the next one. chunk_frames: latent frames. ar_step: ticks between the starts of two chunks; 0 denoises
    all together. conditioning_noise: thousandths of noise in what the model sees of the overlap.

    extension: how a video longer than the window goes on. "overlap" starts a new window with the end of the last one,
    decoded and encoded again, as published. "continue" (ours, block-causal only) is one run over the whole video on
    its K/V; positions then grow past those the model was trained on, unless ``kv`` has a budget of recent chunks.
    """

    frames: int = 97
    height: int = 544
    width: int = 960
    steps: int = 50
    shift: float = 8.0
    guidance: float = 6.0
    fps: int = 24
    chunk_frames: int = 5
    ar_step: int = 5
    base_frames: int = 97
    overlap_frames: int = 17
    conditioning_noise: float = 20.0
    extension: str = OVERLAP
    attention: str = ATTENTION[0]
    policy: ReusePolicy = Never()
    quantity: Quantity = Velocity()
    kv: KVSettings = KVSettings()
    reuse_device: str | None = None

    def __post_init__(self) -> None:
        """Refuse everything that cannot work (SettingError), before anything is allocated."""
        require_types(self)
        require_count("frames", self.frames, minimum=1, maximum=pixel_frames(MOST_FRAMES))
        require_size(self.height, self.width, SPATIAL_STRIDE)
        for name in ("base_frames", "overlap_frames"):
            pixels = getattr(self, name)
            require_count(name, pixels, minimum=1, maximum=pixel_frames(MOST_FRAMES))
            whole = pixels % TIME_STRIDE == 1
            require(whole, name, pixels, f"1 more than a multiple of {TIME_STRIDE}, as the autoencoder takes them")
        require_count("fps", self.fps, minimum=1)
        require_finite("guidance", self.guidance, minimum=0.0)
        require_finite("conditioning_noise", self.conditioning_noise, minimum=0.0, maximum=1000.0)
        require(self.extension in EXTENSIONS, "extension", self.extension, " or ".join(EXTENSIONS))
        if self.extension == CONTINUE and self.frames > self.base_frames:
            accepted = f"{ATTENTION[0]}: there is no K/V to continue from with {ATTENTION[1]} attention"
            require(self.attention == ATTENTION[0], "attention", self.attention, accepted)
        self.check_windows()
        _ = self.engines  # plans, schedule and cache check themselves

    def check_windows(self) -> None:
        """In the units of the fields, before the plans count in latent frames."""
        require_count("chunk_frames", self.chunk_frames, minimum=1)
        base, chunk = latent_frames_for(self.base_frames), self.chunk_frames
        require(base >= chunk, "base_frames", self.base_frames, f"{pixel_frames(chunk)} or more, room for one chunk")
        if self.extension == OVERLAP and self.frames > self.base_frames:
            overlap = latent_frames_for(self.overlap_frames)
            fits = [pixel_frames(n) for n in range(chunk, base, chunk)]
            needed = f"{pixel_frames(chunk + 1)} or more: room for a chunk of overlap and new frames"
            require(bool(fits), "base_frames", self.base_frames, needed)
            accepted = f"{listed(fits, 20)}: whole chunks, with room for new frames"
            require(overlap % chunk == 0 and overlap < base, "overlap_frames", self.overlap_frames, accepted)

    @classmethod
    def of_preset(cls, model: str, preset: str, **changes: Any) -> SkyReelsSettings:
        """A model's published run with the policy, quantity, K/V settings and attention of one of its presets.

        SettingError when the preset is not for the ``steps``, ``shift`` and ``guidance`` in ``changes``.
        """
        run = published_run(model, "wan")
        values: dict[str, Any] = {
            key: run[key] for key in ("height", "width", "steps", "shift", "chunk_frames", "ar_step")
        }
        values |= {key: pixel_frames(run[key]) for key in ("frames", "base_frames", "overlap_frames")}
        values = {"guidance": cls.guidance} | values | changes
        row = fitted(model, preset, changes, [values[name] for name in ("steps", "shift", "guidance")])
        chosen: dict[str, Any] = {"policy": row.policy, "quantity": row.quantity, "attention": row.attention}
        if row.kv is not None:
            chosen["kv"] = row.kv
        return cls(**(chosen | values))

    @cached_property
    def windows(self) -> tuple[VideoWindow, ...]:
        """In latent frames. A last window may be short; the video is cut to ``frames`` after decoding."""
        frames, base = latent_frames_for(self.frames), latent_frames_for(self.base_frames)
        if self.extension == CONTINUE:
            return (VideoWindow(0, frames, 0),)
        return overlap_windows(frames, base, latent_frames_for(self.overlap_frames), self.chunk_frames)

    @cached_property
    def engines(self) -> tuple[EngineSettings, ...]:
        """The engine's settings for every window."""
        base = latent_frames_for(self.base_frames)

        @cache  # a long video has thousands of windows, and two or three kinds of them
        def engine(frames: int, prefix_frames: int) -> EngineSettings:
            return EngineSettings(
                plan=staggered(frames, self.chunk_frames, self.steps, self.ar_step, prefix_frames, base),
                schedule=skyreels(self.steps, self.shift),
                solver=UniPC(),
                policy=self.policy,
                quantity=self.quantity,
                kv=self.kv,
                attention=self.attention,
                prefix_noise=self.conditioning_noise / 1000,
                reuse_device=self.reuse_device,
            )

        return tuple(engine(window.frames, window.prefix_frames) for window in self.windows)


def latent_frames_for(pixels: int) -> int:
    """The fewest latent frames that decode to at least ``pixels`` frames."""
    return -(-(pixels - 1) // TIME_STRIDE) + 1


def pixel_frames(latents: int) -> int:
    return TIME_STRIDE * (latents - 1) + 1


@dataclass(frozen=True)
class SkyReelsVideo:
    """pixels: ``[B, 3, frames, H, W]`` in -1..1, fp32 on the CPU. latents: ``[B, 16, F, H/8, W/8]`` of every window."""

    pixels: Tensor
    latents: tuple[Tensor, ...]


@torch.no_grad()
def generate_video(
    transformer: WanTransformer,
    vae: WanVAE,
    prompts: Sequence[Tensor],
    settings: SkyReelsSettings,
    *,
    seed: int = 0,
    observe: Callable[[int, Event], None] = lambda window, event: None,
    on_frames: Callable[[Tensor], None] = lambda frames: None,
) -> SkyReelsVideo:
    """Generate a video.

    prompts: text embeddings ``[B, T, text_dim]``, (cond, uncond), or (cond,) for a guidance of 1 or less.
    observe: gets every event with the number of its window. on_frames: gets ``[B, 3, n, H, W]`` as soon as a chunk is
    finished, while later ones still run; joined they are the video. Raises SettingError before anything is computed.
    """
    require_count("seed", seed, minimum=0, maximum=2**64 - 1)
    denoiser = WanDenoiser(transformer, {0: tuple(prompts)}, settings.guidance, settings.fps)
    film, latents = Film(settings.frames, on_frames), []
    side = (settings.height // SPATIAL_STRIDE, settings.width // SPATIAL_STRIDE)
    weight, vae_weight = transformer.patch_embedding.weight, vae.conv2.weight
    for number, (part, engine) in enumerate(zip(settings.windows, settings.engines, strict=True)):
        shape = (prompts[0].shape[0], transformer.config.in_dim, part.frames, *side)
        noise = window_noise(seed, number, shape).to(weight.device)
        decode = StreamDecoder(vae)
        prefix = None
        if part.prefix_frames:
            prefix = vae.encode(film.last(pixel_frames(part.prefix_frames)).to(vae_weight))
            decode(prefix)  # its frames are there already; later ones depend on it
            prefix = prefix.to(noise)

        def follow(event: Event, number: int = number, decode: StreamDecoder = decode) -> None:
            if isinstance(event, ChunkFinished):
                film.add(decode(event.latents.to(vae_weight)))
            observe(number, event)

        source = seeded_noise(conditioning_seed(seed, number))
        latents.append(generate(denoiser, engine, noise, prefix=prefix, noise_source=source, observe=follow))
    return SkyReelsVideo(torch.cat(film.pieces, 2), tuple(latents))
