"""How close one video is to another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import require
from .ssim import ssim

PSNR_CAP = 100.0  # dB; an infinite PSNR is not valid JSON, and beyond this (MSE 1e-10) float32 has nothing more to say
_SSIM_FRAMES = 32  # frames scored at once, so that memory does not grow with the video


@dataclass(frozen=True)
class Quality:
    """A video against its reference.

    psnr: dB, from one mean squared error over all frames, capped at 100. psnr_per_frame: the same frame by frame.
    ssim: mean over frames, 1 for identical. flicker: mean absolute difference, on the 0..1 scale, of the change from
    frame to frame; 0 when both videos move alike.
    """

    psnr: float
    ssim: float
    flicker: float
    psnr_per_frame: tuple[float, ...]


def compare(video: Tensor, reference: Tensor) -> Quality:
    """Quality of ``video`` against ``reference``, both ``[T, H, W, 3]``, uint8 or float in 0..1.

    Raises SettingError when the shapes differ, or frames are smaller than SSIM's 11 x 11 window.
    """
    errors, similar = frame_scores(video, reference)
    change = (_unit(video).diff(dim=0) - _unit(reference).diff(dim=0)).abs()
    return Quality(
        psnr=decibel(sum(errors) / len(errors)),
        ssim=sum(similar) / len(similar),
        flicker=change.mean().item() if len(video) > 1 else 0.0,
        psnr_per_frame=tuple(decibel(error) for error in errors),
    )


def frame_scores(video: Tensor, reference: Tensor) -> tuple[list[float], list[float]]:
    """Mean squared error and SSIM of every frame; videos and errors as for :func:`compare`."""
    require(video.ndim == 4 and video.shape[3] == 3, "video", tuple(video.shape), "shape [T, H, W, 3]")
    accepted = f"the reference's shape {tuple(reference.shape)}"
    require(video.shape == reference.shape, "video", tuple(video.shape), accepted)
    require(min(video.shape[1:3]) >= 11, "video", tuple(video.shape), "frames of at least 11 x 11 pixels")
    errors, similar = list[float](), list[float]()
    for part, other in zip(video.split(_SSIM_FRAMES), reference.split(_SSIM_FRAMES), strict=True):
        a, b = _unit(part), _unit(other)
        errors += (a - b).double().square().mean(dim=(1, 2, 3)).tolist()
        similar += ssim(a.movedim(3, 1), b.movedim(3, 1)).tolist()
    return errors, similar


def decibel(mean_squared_error: float) -> float:
    """PSNR for data range 1."""
    if mean_squared_error == 0:
        return PSNR_CAP
    return min(PSNR_CAP, -10 * math.log10(mean_squared_error))


def _unit(video: Tensor) -> Tensor:
    return video.float() / 255 if video.dtype == torch.uint8 else video.float()
