"""MAGI-1: a video chunk by chunk, each decoded while the next ones are still noise (arXiv 2505.13211), with FlowCache.

Latent frames stand for four pixel frames each, the first one too. A video is generated in whole chunks and cut to the
frames asked for after decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine import EngineSettings, generate
from ..errors import require, require_count
from ..fields import require_types
from ..kv.settings import KVSettings
from ..models.magi.config import LATENT_CHANNELS
from ..models.magi.denoiser import Caption, MagiDenoiser
from ..models.magi.guidance import CLEAN_TIME, GuidanceScales
from ..models.magi.transformer import MagiTransformer
from ..models.magi.vae import LATENT_SCALE, MagiVAE, Tiling
from ..noise import window_noise
from ..plan.base import MOST_FRAMES, Plan
from ..plan.window import window
from ..presets import model_file, published_run
from ..report.events import ChunkFinished, Event
from ..reuse.base import ReusePolicy
from ..reuse.never import Never
from ..reuse.quantity import Quantity, Velocity
from ..schedule import magi, magi_distill_times
from .base import Film, fitted, require_size

DISTILLED, BASE = VARIANTS = ("distilled", "base")
DISTILLED_STEPS = (8, 12, 16, 32, 64)
TIME_STRIDE, SPATIAL_STRIDE = 4, 8


@dataclass(frozen=True)
class MagiSettings:
    """Everything but weights, captions, prefix and seed; the defaults are the run that FlowCache's figures are about.

    frames: new pixel frames. variant: "distilled" weights take one forward and are told the length of their steps, of
    which they know only some (12 of them in the ``shortcut_mode`` of :func:`.schedule.magi`); "base" weights take three
    forwards, combined by ``guidance``. nearly_clean: see :class:`..models.magi.denoiser.MagiDenoiser`. ranges: how many
    chunks a chunk sees, itself included, per equal part of its steps; () for all, as in the paper's runs, (5, 4, 3, 2)
    in the released configurations. clean_range: how many a clean chunk sees, None as released
    (:func:`..models.magi.guidance.visible_to_clean`).
    clean_pass: encode a finished chunk again, clean and with the null caption (MAGI-1 does, FlowCache's fork of it does
    not). chunk_frames: latent frames.

    The least budget of ``kv`` is one chunk of history beside the window: B_total is at least ``window_chunks + 1``.
    """

    frames: int = 240
    height: int = 720
    width: int = 720
    steps: int = 64
    variant: str = DISTILLED
    shortcut_mode: str = "8,16,16"
    guidance: GuidanceScales = GuidanceScales()
    nearly_clean: bool = True
    clean_pass: bool = True
    ranges: tuple[int, ...] = ()
    clean_range: int | None = None
    chunk_frames: int = 6
    window_chunks: int = 4
    policy: ReusePolicy = Never()
    quantity: Quantity = Velocity()
    kv: KVSettings = KVSettings()
    reuse_device: str | None = None

    def __post_init__(self) -> None:
        """Refuse everything that cannot work (SettingError), before anything is allocated."""
        require_types(self)
        require_count("frames", self.frames, minimum=1, maximum=TIME_STRIDE * MOST_FRAMES)
        require_size(self.height, self.width, SPATIAL_STRIDE)
        require(self.variant in VARIANTS, "variant", self.variant, " or ".join(VARIANTS))
        object.__setattr__(self, "ranges", tuple(self.ranges))
        _ = self.engine()  # the plan checks the steps against the window
        if self.variant == DISTILLED:
            known = self.steps in DISTILLED_STEPS
            require(known, "steps", self.steps, f"{', '.join(map(str, DISTILLED_STEPS))} with distilled weights")
        else:
            accepted = "another number: 12 steps are of two lengths, which only distilled weights are told"
            require(self.steps != 12, "steps", self.steps, accepted)
        for count in self.ranges:
            require_count("ranges", count, minimum=1)
        if self.clean_range is not None:
            require_count("clean_range", self.clean_range, minimum=1)
        parts = len(self.ranges)
        whole = parts == 0 or self.steps % parts == 0
        require(whole, "ranges", self.ranges, f"a number of entries that divides the {self.steps} steps")

    @classmethod
    def of_preset(cls, model: str, preset: str, **changes: Any) -> MagiSettings:
        """A model's published run with the policy, quantity, K/V settings and passes of one of its presets.

        SettingError when the preset is not for the ``steps`` in ``changes``.
        """
        run = published_run(model, "magi")
        values: dict[str, Any] = {
            key: run[key] for key in ("height", "width", "steps", "chunk_frames", "window_chunks")
        }
        values |= {"frames": TIME_STRIDE * run["frames"], **changes}
        row = fitted(model, preset, changes, [values["steps"]])
        chosen: dict[str, Any] = {"policy": row.policy, "quantity": row.quantity, **passes(model, preset)}
        if row.kv is not None:
            chosen["kv"] = row.kv
        return cls(**(chosen | values))

    def plan(self, prefix_frames: int = 0) -> Plan:
        """The window's plan for ``frames`` new frames behind ``prefix_frames`` given latent frames, in whole chunks."""
        require_count("chunk_frames", self.chunk_frames, minimum=1)
        wanted = prefix_frames + -(-self.frames // TIME_STRIDE)
        latent_frames = -(-wanted // self.chunk_frames) * self.chunk_frames
        return window(latent_frames, self.chunk_frames, self.steps, self.window_chunks, prefix_frames)

    def new_chunks(self, prefix_frames: int = 0) -> int:
        """Chunks that are generated, each of which may have a caption of its own."""
        plan = self.plan(prefix_frames)
        return len(plan.chunks) - plan.prefix_chunks

    def engine(self, prefix_frames: int = 0) -> EngineSettings:
        return EngineSettings(
            plan=self.plan(prefix_frames),
            schedule=magi(self.steps, self.shortcut_mode),
            policy=self.policy,
            quantity=self.quantity,
            kv=self.kv,
            clean_pass=self.clean_pass,
            clean_timestep=CLEAN_TIME,
            reuse_device=self.reuse_device,
        )

    def denoiser(self, transformer: MagiTransformer, captions: Mapping[int, Caption]) -> MagiDenoiser:
        """captions: as :class:`..models.magi.denoiser.MagiDenoiser` takes them, by chunk of the whole plan."""
        seen: dict[str, Any] = {"ranges": self.ranges, "clean_range": self.clean_range}
        if self.variant == BASE:
            return MagiDenoiser(transformer, captions, guidance=self.guidance, **seen)
        times = magi_distill_times(self.steps, self.shortcut_mode)
        return MagiDenoiser(transformer, captions, step_times=times, nearly_clean=self.nearly_clean, **seen)


def passes(model: str, preset: str) -> dict[str, bool]:
    """What a preset says of the extra passes: ``nearly_clean`` and ``clean_pass``, both on unless it says otherwise."""
    row = model_file(model)["presets"].get(preset, {})
    return {"nearly_clean": True, "clean_pass": True, **row.get("passes", {})}


@dataclass(frozen=True)
class MagiVideo:
    """pixels: ``[1, 3, F, H, W]`` in -1..1, fp32 on the CPU. latents: ``[1, 16, f, H/8, W/8]``, prefix included."""

    pixels: Tensor
    latents: Tensor


@torch.no_grad()
def generate_video(
    transformer: MagiTransformer,
    vae: MagiVAE,
    captions: Caption,
    settings: MagiSettings,
    *,
    prefix: Tensor | None = None,
    seed: int = 0,
    tiling: Tiling | None = None,
    observe: Callable[[Event], None] = lambda event: None,
    on_frames: Callable[[Tensor], None] = lambda frames: None,
) -> MagiVideo:
    """Generate a video, or go on with one.

    captions: states ``[n, rows, text_dim]`` and mask ``[n, rows]``, n = 1 or one for each of ``settings.new_chunks``
    (:func:`.models.magi_text.chunk_captions`). prefix: pixels ``[1, 3, F, H, W]`` in -1..1 that the video begins with,
    an image (F = 1) or a multiple of 4 frames. Whole chunks of it are not decoded again; what it has beyond them lies
    in the first new chunk and comes out with it, before the ``settings.frames`` new frames (an image as 4 frames).
    on_frames: gets ``[1, 3, n, H, W]`` as soon as a chunk is finished, while later ones still run; joined they are the
    video. Raises SettingError before anything is computed.
    """
    require_count("seed", seed, minimum=0, maximum=2**64 - 1)
    if prefix is not None:
        count = prefix.shape[2] if prefix.ndim == 5 else 0
        fits = count == 1 or (count > 0 and count % TIME_STRIDE == 0)
        fits = fits and tuple(prefix.shape) == (1, 3, count, settings.height, settings.width)
        accepted = f"[1, 3, 1 or a multiple of {TIME_STRIDE}, {settings.height}, {settings.width}]"
        require(fits, "prefix", tuple(prefix.shape), accepted)
    prefix_frames = 0 if prefix is None else -(-prefix.shape[2] // TIME_STRIDE)
    engine = settings.engine(prefix_frames)
    plan = engine.plan
    by_chunk = captions_by_chunk(captions, plan)
    device, vae_device = transformer.rope.bands.device, vae.encoder.cls_token.device
    side = (settings.height // SPATIAL_STRIDE, settings.width // SPATIAL_STRIDE)
    noise = window_noise(seed, 0, (1, LATENT_CHANNELS, plan.frames, *side)).to(device)
    tiling = tiling or Tiling()
    given = None if prefix is None else (vae.encode(prefix.to(vae_device), tiling) * LATENT_SCALE).to(noise)
    film = Film(settings.frames + TIME_STRIDE * plan.held_frames, on_frames)

    def follow(event: Event) -> None:
        if isinstance(event, ChunkFinished):
            for part in vae.decode_parts(event.latents.to(vae_device) / LATENT_SCALE, tiling):
                film.add(part)
        observe(event)

    latents = generate(settings.denoiser(transformer, by_chunk), engine, noise, prefix=given, observe=follow)
    return MagiVideo(torch.cat(film.pieces, 2), latents)


def captions_by_chunk(captions: Caption, plan: Plan) -> dict[int, Caption]:
    """Start chunk -> caption and mask of batch 1, from one for all new chunks or one for each of them.

    A chunk that is given clean has no caption; chunk 0 gets the first one all the same, because there must be one.
    """
    states, mask = captions
    count, first = states.shape[0], plan.prefix_chunks
    new = len(plan.chunks) - first
    require(count in (1, new), "captions", count, f"1, or one for each of the {new} new chunks")
    found = {0: (states[:1], mask[:1])}
    return found | {first + i: (states[i : i + 1], mask[i : i + 1]) for i in range(count)}
