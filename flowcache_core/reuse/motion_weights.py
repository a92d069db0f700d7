"""How much each token of a chunk moves from frame to frame, and the weight that follows (MotionCache)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-8


def motion_weights(
    latents: Tensor,
    before: Tensor | None = None,
    floor: float = 0.6,
    patch: tuple[int, int] = (2, 2),
    *,
    relative: bool = True,
    power: float = 1.0,
    copies_second: bool = True,
) -> Tensor:
    """Weights in [floor, 1] ``[f, tokens per frame]`` of latents ``[B, C, f, H, W]``, one for all of the batch.

    before: the last latent frame of the chunk before ``[B, C, H, W]``. Without one the first frame's motion is not
    known: it takes that of the second (copies_second), else, or where there is no second, the weight 1. relative: the
    change over the size of the frame before it, as MotionCache for SkyReels-V2 has it; else the change itself, as for
    MAGI-1. The mean over a ``patch`` is a token's; a frame that moves evenly gets the floor where the change is
    relative, else 1. power: of the motion scaled to [0, 1].
    """
    known = latents if before is None else torch.cat((before.unsqueeze(2), latents), 2)
    weights = rescaled(latent_motion(known, patch, relative), floor, power, flat=None if relative else 1.0)
    if before is not None:
        return weights
    copied = copies_second and len(weights) > 0
    first = weights[:1] if copied else weights.new_ones(1, weights.shape[1])
    return torch.cat((first, weights))


def latent_motion(latents: Tensor, patch: tuple[int, int] = (2, 2), relative: bool = True) -> Tensor:
    """L1 change of every frame but the first ``[f - 1, tokens per frame]`` fp32, the mean over channels and patch.

    A side that the patch does not divide has a last token over what is left of it.
    """
    x = latents.float()
    moved = (x[:, :, 1:] - x[:, :, :-1]).abs().mean(1)
    if relative:
        moved = moved / (x[:, :, :-1].abs().mean(1) + TINY)
    return token_means(moved.unsqueeze(1), patch)


def token_means(values: Tensor, patch: tuple[int, int]) -> Tensor:
    """The mean over videos, channels and patch of ``values [B, C, f, H, W]``: ``[f, tokens per frame]``."""
    places = values.mean(1)
    if places.shape[1] == 0:
        sides = (-(-size // side) for size, side in zip(places.shape[2:], patch, strict=True))
        return places.new_zeros(0, torch.Size(sides).numel())
    return F.avg_pool2d(places, patch, ceil_mode=True).flatten(2).mean(0)


def hidden_motion(hidden: Tensor, before: Tensor | None = None) -> Tensor:
    """The same of a model's tokens: relative L1 change ``[f, S]`` of ``hidden [f, S, C]`` behind the last block.

    before: the last frame of the chunk before ``[S, C]``; without one the first frame takes the second's change.
    """
    x = hidden.float()
    x = x if before is None else torch.cat((before.float()[None], x))
    moved = (x[1:] - x[:-1]).abs().mean(-1) / (x[:-1].abs().mean(-1) + TINY)
    return moved if before is not None else torch.cat((moved[:1], moved))


def rescaled(motion: Tensor, floor: float, power: float = 1.0, flat: float | None = None) -> Tensor:
    """``floor + (1 - floor) ((M - min) / (max - min)) ** power`` of every frame of ``motion [f, S]``.

    flat: weight of a frame whose motion is the same everywhere; None is the floor.
    """
    if not len(motion):
        return motion
    low, high = motion.amin(1, keepdim=True), motion.amax(1, keepdim=True)
    span = high - low
    share = (motion - low) / (span + TINY if flat is None else torch.where(span > 0, span, 1.0))
    weights = floor + (1 - floor) * (share if power == 1 else share**power)
    return weights if flat is None else torch.where(span > 0, weights, flat)
