"""Structural similarity of pictures (Wang, Bovik, Sheikh, Simoncelli 2004), with nothing but torch.

A Gaussian window of 11 x 11 pixels with sigma 1.5 at every pixel, pictures mirrored at their edges, and the constants
0.01 and 0.03 of the data range: what most published figures of videos are made with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
LUMINANCE, CONTRAST = 0.01**2, 0.03**2


def ssim(pictures: Tensor, reference: Tensor) -> Tensor:
    """``[n]``, one value per picture, 1 for identical. Both ``[n, C, H, W]`` from 0 to 1, sides of at least 11."""
    a, b = pictures.float(), reference.float()
    mean_a, mean_b, square_a, square_b, product = _blurred(torch.stack((a, b, a * a, b * b, a * b)))
    variance_a, variance_b = (square_a - mean_a**2).clamp(min=0), (square_b - mean_b**2).clamp(min=0)
    luminance = (2 * mean_a * mean_b + LUMINANCE) / (mean_a**2 + mean_b**2 + LUMINANCE)
    structure = (2 * (product - mean_a * mean_b) + CONTRAST) / (variance_a + variance_b + CONTRAST)
    return (luminance * structure).mean((1, 2, 3))


def _blurred(maps: Tensor) -> Tensor:
    """``[k, n, C, H, W]`` under the window, row by row and then column by column."""
    places = torch.arange(WINDOW, dtype=maps.dtype, device=maps.device) - WINDOW // 2
    weights = torch.exp(-(places**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    padded = F.pad(maps.flatten(0, 2).unsqueeze(1), [WINDOW // 2] * 4, mode="reflect")
    rows = F.conv2d(padded, weights.view(1, 1, 1, -1))
    return F.conv2d(rows, weights.view(1, 1, -1, 1)).reshape(maps.shape)
