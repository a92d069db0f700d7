"""Running an autoencoder over overlapping tiles of a frame and blending the seams."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from ...errors import require


def run_tiled(
    x: Tensor, function: Callable[[Tensor], Tensor], *, tile: int, stride: int, ratio: Fraction, chained: bool
) -> Tensor:
    """``function`` over square tiles of ``x [B, C, F, H, W]``, one beginning every ``stride``, joined.

    ratio: size of the output relative to the input (8 for decoding, 1/8 for encoding). Where tiles overlap the result
    runs linearly from the upper to the lower tile, then from the left to the right one. chained: a tile blends with its
    neighbour as that was left by its own blending; otherwise with the neighbour as it was computed. Peak memory is one
    row of tiles beside the result.
    """
    keep, extent = stride * ratio, (tile - stride) * ratio
    ok = 0 < stride <= tile and keep.denominator == 1 and extent.denominator == 1
    require(ok, "tile and stride", (tile, stride), f"stride up to the tile, both multiples of {ratio.denominator}")
    size, overlap = int(keep), int(extent)
    above: list[Tensor] | None = None
    bands = []
    for top in range(0, x.shape[3], stride):
        row = [function(x[..., top : top + tile, left : left + tile]) for left in range(0, x.shape[4], stride)]
        done: list[Tensor] = []
        for column, piece in enumerate(row):
            if above is not None:
                piece = _blend(above[column], piece, overlap, 3)
            if column > 0:
                piece = _blend((done if chained else row)[column - 1], piece, overlap, 4)
            done.append(piece)
        above = done if chained else row
        bands.append(torch.cat([piece[..., :size, :size] for piece in done], 4))
    return torch.cat(bands, 3)


def _blend(before: Tensor, piece: Tensor, overlap: int, dim: int) -> Tensor:
    """``piece`` whose first ``overlap`` places along ``dim`` come linearly out of the last ones of ``before``."""
    extent = min(overlap, before.shape[dim], piece.shape[dim])
    if extent == 0:
        return piece
    weight = torch.arange(extent, dtype=piece.dtype, device=piece.device) / extent
    weight = weight.view([-1 if axis == dim else 1 for axis in range(piece.dim())])
    tail = before.narrow(dim, before.shape[dim] - extent, extent)
    seam = tail * (1 - weight) + piece.narrow(dim, 0, extent) * weight
    return torch.cat((seam, piece.narrow(dim, extent, piece.shape[dim] - extent)), dim)
