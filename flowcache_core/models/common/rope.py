"""Rotary position embedding over (frame, row, column), as Wan 2.1 defines it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...background import sent

THETA = 10000.0


def rope_axes(head_dim: int) -> tuple[int, int, int]:
    """Dimensions of one head that turn with the frame, the row and the column; their sum is ``head_dim``."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


@dataclass(frozen=True)
class RopeAxes:
    """Rotations along each axis by itself, ``[positions, size / 2, 2]`` (cosine, sine) fp32: small, made once a run.

    ``first``: frame of the video that ``frames`` begins with.
    """

    first: int
    frames: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(
        cls, first: int, frames: int, rows: int, columns: int, head_dim: int, device: torch.device | str = "cpu"
    ) -> RopeAxes:
        """Angles are taken in float64 from whole-number positions, so the axes have no longest video: a frame's
        rotation depends neither on the dtype of the weights nor on where the window starts.
        """
        axes = []
        for (start, count), size in zip(((first, frames), (0, rows), (0, columns)), rope_axes(head_dim), strict=True):
            exponent = torch.arange(0, size, 2, dtype=torch.float64, device="cpu") / max(size, 1)
            positions = torch.arange(start, start + count, dtype=torch.float64, device="cpu")
            angle = torch.outer(positions, THETA**-exponent)
            # Rounded to fp32 before the move: some devices have no float64.
            axes.append(sent(torch.stack((angle.cos(), angle.sin()), -1).float(), device))
        return cls(first, *axes)

    def table(self, first_frame: int, frames: int) -> Tensor:
        """Rotations as complex64 ``[frames * rows * columns, 1, head_dim / 2]``, tokens in (frame, row, column) order.

        Put together where the axes lie: nothing is copied to the device for it.
        """
        grid = (frames, len(self.rows), len(self.columns))
        start = first_frame - self.first
        parts = [self.frames[start : start + frames, None, None], self.rows[:, None], self.columns]
        table = torch.cat([part.expand(*grid, -1, -1) for part in parts], -2)
        return torch.view_as_complex(table.flatten(0, 2)).unsqueeze(1)


def rope_table(
    first_frame: int, frames: int, height: int, width: int, head_dim: int, device: torch.device | str = "cpu"
) -> Tensor:
    """:meth:`RopeAxes.table` of frames that are asked for once."""
    return RopeAxes.of(first_frame, frames, height, width, head_dim, device).table(first_frame, frames)


def moved(keys: Tensor, frames: int) -> Tensor:
    """Rotated keys ``[..., head_dim]`` as if they stood ``frames`` latent frames later; rows and columns stay."""
    time = rope_axes(keys.shape[-1])[0]
    turn = _turn(time, frames, keys.device)
    turned = torch.view_as_complex(keys[..., :time].float().unflatten(-1, (-1, 2))) * turn
    return torch.cat((torch.view_as_real(turned).flatten(-2).to(keys.dtype), keys[..., time:]), -1)


@lru_cache(maxsize=8)
def _turn(size: int, frames: int, device: torch.device) -> Tensor:
    """Complex64 ``[size / 2]``: a frame axis turned by ``frames``; copied to the device when first asked for."""
    exponent = torch.arange(0, size, 2, dtype=torch.float64, device="cpu") / max(size, 1)
    angle = frames * THETA**-exponent
    return sent(torch.complex(angle.cos().float(), angle.sin().float()), device)


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Turn neighbouring pairs of fp32 ``x [B, tokens, heads, head_dim]`` by the angles of :func:`rope_table`."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * table).flatten(-2)
