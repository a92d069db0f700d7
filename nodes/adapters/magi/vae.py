"""MAGI-1's autoencoder as a VAE that the host's own nodes decode and encode with."""

from __future__ import annotations

import copy
import logging
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from ....flowcache_core.errors import require
from ....flowcache_core.models.magi.vae import LATENT_SCALE, MagiVAE, Tiling, load_magi_vae
from ..shown.growing_video import GrowingVideo
from ..shown.live_preview import Display, LivePreview

STRIDE = 8
FRAMES = 4
# Working memory of one block per token: activations of the feed-forward and fp32 queries, keys and values.
FLOATS_PER_WIDTH = 24


class MagiHostVAE(comfy.sd.VAE):
    """Runs in tiles of 256 pixels and 12 frames, as released, unless a tiled node says otherwise.

    Attention spans a whole tile, so larger tiles cost memory by area and time by its square, and the position tables
    were made for 256 pixels.
    """

    def __init__(self, model: MagiVAE) -> None:
        management = comfy.model_management
        self.first_stage_model = model
        self.downscale_ratio = (lambda frames: max(1, frames // FRAMES), STRIDE, STRIDE)
        self.upscale_ratio = (lambda frames: max(0, frames * FRAMES), STRIDE, STRIDE)
        self.downscale_index_formula = self.upscale_index_formula = (FRAMES, STRIDE, STRIDE)
        self.latent_channels, self.latent_dim, self.output_channels = model.config.z_chans, 3, 3
        self.process_input = lambda image: image * 2.0 - 1.0
        self.process_output = lambda image: image.add_(1.0).div_(2.0).clamp_(0.0, 1.0)
        self.working_dtypes = [torch.bfloat16, torch.float32]
        self.disable_offload = self.not_video = False
        self.crop_input, self.pad_channel_value = True, None
        self.extra_1d_channel = self.size = None
        self.audio_sample_rate = 44100
        self.device, self.output_device = management.vae_device(), management.intermediate_device()
        self.vae_dtype = management.vae_dtype(self.device, self.working_dtypes)
        model.to(self.vae_dtype)
        management.archive_model_dtypes(model)
        self.memory_used_encode = self.memory_used_decode = lambda shape, dtype: self.tile_memory(Tiling(), dtype)
        self.patcher = comfy.model_patcher.ModelPatcher(
            model, load_device=self.device, offload_device=management.vae_offload_device()
        )
        self.model_size()

    def tile_memory(self, tiling: Tiling, dtype: torch.dtype) -> int:
        """Bytes that one tile needs beside the weights."""
        config = self.first_stage_model.config
        tokens = (tiling.pixels // config.patch_size) ** 2 * tiling.frames // config.patch_length
        return int(tokens * config.embed_dim * FLOATS_PER_WIDTH * comfy.model_management.dtype_size(dtype))

    def load(self, tiling: Tiling) -> None:
        needed = self.tile_memory(tiling, self.vae_dtype)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=needed)

    def decode(self, samples_in: Tensor, vae_options: Any = None) -> Tensor:
        """Latents ``[B, 16, f, h, w]`` to images ``[B, 4 f, 8 h, 8 w, 3]`` in 0..1; one latent frame is one image."""
        return self.run_decode(samples_in, Tiling())

    def decode_tiled(
        self,
        samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """Sizes in latents. Runs of frames do not overlap, so ``overlap_t`` has nothing to say."""
        pixels = min(tile_x or Tiling.pixels // STRIDE, tile_y or Tiling.pixels // STRIDE) * STRIDE
        return self.run_decode(samples, tiling(pixels, (overlap or 0) * STRIDE, (tile_t or 0) * FRAMES))

    def run_decode(self, samples: Tensor, how: Tiling) -> Tensor:
        self.load(how)
        model = self.first_stage_model
        parts = -(-samples.shape[2] * FRAMES // how.frames)
        bar, videos = comfy.utils.ProgressBar(samples.shape[0] * parts), []
        with comfy.model_management.cuda_device_context(self.device):
            for latents in samples.split(1):
                video = []
                for part in model.decode_parts(latents.to(self.device), how):
                    comfy.model_management.throw_exception_if_processing_interrupted()
                    video.append(part.to(self.output_device, self.vae_output_dtype()))
                    bar.update(1)
                videos.append(torch.cat(video, 2))
        pixels = torch.cat(videos)
        pixels = pixels[:, :, :1] if samples.shape[2] == 1 else pixels
        return self.process_output(pixels).movedim(1, -1)

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Images ``[F, H, W, C]`` of one video, or videos ``[B, F, H, W, C]``, to latents ``[B, 16, f, h, w]``.

        One frame gives one latent frame. Of other counts, frames at the start beyond a multiple of 4 are dropped: the
        end is what a continuation goes on from.
        """
        return self.run_encode(pixel_samples, Tiling())

    def encode_tiled(
        self,
        pixel_samples: Tensor,
        tile_x: int | None = None,
        tile_y: int | None = None,
        overlap: int | None = None,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """Sizes in pixels and frames."""
        pixels = min(tile_x or Tiling.pixels, tile_y or Tiling.pixels)
        return self.run_encode(pixel_samples, tiling(pixels, overlap or 0, tile_t or 0))

    def run_encode(self, images: Tensor, how: Tiling) -> Tensor:
        frames = images.shape[-4]
        images = self.vae_encode_crop_pixels(images.reshape(-1, *images.shape[-3:]))
        videos = images.unflatten(0, (-1, frames)).movedim(-1, 1)
        if frames > 1 and frames % FRAMES:
            kept = frames // FRAMES * FRAMES or 1
            logging.warning(
                "FlowCache: MAGI-1 encodes 1 frame or groups of 4; the last %d of %d are used", kept, frames
            )
            videos = videos[:, :, -kept:]
        self.load(how)
        with comfy.model_management.cuda_device_context(self.device):
            latents = [
                self.first_stage_model.encode(self.process_input(video).to(self.device), how)
                for video in videos.split(1)
            ]
        return torch.cat(latents).to(self.output_device, self.vae_output_dtype())


def magi_preview(display: Display, latents: Tensor) -> LivePreview | None:
    """Preview of a run over MAGI-1's latents ``[B, 16, F, H, W]``; the same frames as VAE Decode gives of whole chunks.

    With a copy of the decoder: loading the VAE as the host does could unload the model that is being sampled.
    SettingError naming preview_vae when it is another model's.
    """
    if display.vae is None:
        return None
    require(isinstance(display.vae, MagiHostVAE), "preview_vae", "another model's VAE", "Load MAGI-1 VAE")
    vae: MagiHostVAE = display.vae
    with torch.device("meta"):
        model = MagiVAE(vae.first_stage_model.config)
    model.to(vae.vae_dtype).decoder = copy.deepcopy(vae.first_stage_model.decoder).to(latents.device)

    def decode(frames: Tensor) -> Tensor:
        return torch.cat(list(model.decode_parts(frames / LATENT_SCALE, Tiling())), 2)

    height, width = (STRIDE * side for side in latents.shape[3:])
    video = GrowingVideo(width, height, display.fps)
    return LivePreview(decode, video, vae.vae_dtype, Tiling.frames // FRAMES)


def tiling(pixels: int, overlap: int, frames: int) -> Tiling:
    """The nearest tiles that the model can run: whole patches, an overlap of at most half, whole groups of frames.

    Position tables end at 16 frames; longer runs are resized and blur, so 12 stays the most.
    """
    pixels = max(2 * STRIDE, pixels // STRIDE * STRIDE)
    share = min(0.5, overlap // STRIDE * STRIDE / pixels)
    runs = min(Tiling.frames, max(FRAMES, frames // FRAMES * FRAMES)) if frames else Tiling.frames
    return Tiling(pixels, share, runs)


def load_host_vae(path: str) -> MagiHostVAE:
    """The VAE at ``path``, a weight file or index with its config.json beside it; SettingError as in the core."""
    return MagiHostVAE(load_magi_vae(path))
