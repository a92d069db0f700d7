"""Clean leading frames: where they come from and how many there are."""

from __future__ import annotations

from typing import Any

import comfy.utils
from torch import Tensor

from ....flowcache_core.errors import require


def given_latents(latent: Any, last_frames: int) -> Tensor:
    """Frames of a LATENT input as the VAE made them, the last ``last_frames`` or all. SettingError without video."""
    samples = latent["samples"]
    shape = tuple(samples.shape)
    require(samples.ndim == 5, "prefix", shape, "video latents [B, C, F, H, W], from VAE Encode with a video VAE")
    require(last_frames <= shape[2], "prefix_frames", last_frames, f"at most the {shape[2]} latent frames of prefix")
    return samples[:, :, -last_frames:] if last_frames else samples


def start_image(model_options: Any) -> Tensor | None:
    """The latents that the host's AR Video I2V node leaves on the model, as the VAE made them."""
    latents: Tensor | None = model_options.get("transformer_options", {}).get("ar_config", {}).get("initial_latent")
    return latents


def masked_frames(denoise_mask: Tensor | None) -> int:
    """Leading latent frames that the noise mask ``[B, C, F, H, W]`` keeps whole."""
    if denoise_mask is None or denoise_mask.ndim != 5:
        return 0
    changed = (denoise_mask != 0).flatten(3).any(-1).any(0).any(0).tolist()
    return changed.index(True) if True in changed else len(changed)


def clean_frames(
    given: Tensor | None, options: Any, denoise_mask: Tensor | None, latent_image: Tensor, model: Any, like: Tensor
) -> Tensor | None:
    """The clean leading frames ``[B, C, frames, H, W]``, processed for the model, from whichever place has them.

    given: of the sampler node. latent_image: processed. like: the latents to be sampled. SettingError when two places
    have frames, or they do not fit.
    """
    masked, image = masked_frames(denoise_mask), start_image(options)
    places = {
        "prefix of this node": given is not None,
        "the start image of AR Video I2V": image is not None,
        "a noise mask that keeps the first frames": masked > 0,
    }
    found = [place for place, has in places.items() if has]
    require(len(found) <= 1, "prefix", " and ".join(found), "one of them")
    if masked:
        require(masked < like.shape[2], "noise mask", "every frame kept", "a mask that leaves frames to be made")
        return latent_image[:, :, :masked]
    latents = image if given is None else given
    return None if latents is None else fitted(latents, model, like)


def fitted(prefix: Tensor, model: Any, like: Tensor) -> Tensor:
    """Processed for the model, on the device of ``like`` ``[B, C, F, H, W]``, one for every video of the batch."""
    batch, channels, frames, height, width = like.shape
    shape = tuple(prefix.shape)
    fits = shape[1] == channels and shape[3:] == (height, width) and shape[0] in (1, batch)
    require(fits, "prefix", shape, f"latents [1 or {batch}, {channels}, frames, {height}, {width}] like latent_image")
    require(shape[2] < frames, "prefix frames", shape[2], f"fewer than the {frames} latent frames of latent_image")
    prefix = model.process_latent_in(prefix).to(device=like.device, dtype=like.dtype)
    return comfy.utils.repeat_to_batch_size(prefix, batch)
