"""LPIPS when its weights are on this machine already; nothing is ever downloaded for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

BACKBONE = "alexnet-owt-7be5be79.pth"  # torchvision's file name in the torch hub folder


def available() -> bool:
    """Whether torchvision is installed and its AlexNet weights lie in the torch hub folder."""
    installed = all(importlib.util.find_spec(name) is not None for name in ("torchmetrics", "torchvision"))
    return installed and (Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE).is_file()


def distance() -> Callable[[Tensor, Tensor], float] | None:
    """LPIPS (AlexNet) of two videos ``[T, H, W, 3]`` uint8, 0 = alike; None when its weights are not at hand."""
    if not available():
        return None
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as lpips

    def measure(video: Tensor, reference: Tensor) -> float:
        a, b = (clip.movedim(3, 1).float() / 255 for clip in (video, reference))
        return float(lpips(a, b, net_type="alex", normalize=True))

    return measure
