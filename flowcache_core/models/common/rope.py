"""Rotary position embedding over (frame, row, column), as Wan 2.1 defines it."""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10000.0


def rope_axes(head_dim: int) -> tuple[int, int, int]:
    """Dimensions of one head that turn with the frame, the row and the column; their sum is ``head_dim``."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def rope_table(
    first_frame: int, frames: int, height: int, width: int, head_dim: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Rotations as complex64 ``[frames * height * width, 1, head_dim / 2]``, tokens in (frame, row, column) order.

    Angles are taken in float64 from whole-number positions, so the table has no longest video: a frame's rotation
    depends neither on the dtype of the weights nor on where the window starts.
    """
    angles = []
    grid = ((first_frame, frames), (0, height), (0, width))
    for axis, ((start, count), size) in enumerate(zip(grid, rope_axes(head_dim), strict=True)):
        exponent = torch.arange(0, size, 2, dtype=torch.float64, device="cpu") / max(size, 1)
        positions = torch.arange(start, start + count, dtype=torch.float64, device="cpu")
        shape = [1, 1, 1, size // 2]
        shape[axis] = count
        angle = torch.outer(positions, THETA**-exponent).view(shape)
        angles.append(angle.expand(frames, height, width, -1))
    table = torch.cat(angles, -1).view(-1, 1, head_dim // 2)
    # Rounded to fp32 before the move: some devices have no float64.
    return torch.complex(table.cos().float(), table.sin().float()).to(device)


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring pairs of fp32 ``x [B, tokens, heads, head_dim]`` by the angles of :func:`rope_table`."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * table).flatten(-2)
