"""What runs from prompt to pixels have in common: sizes that fit, a preset that fits, and the film they end as."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import require, require_count
from ..presets import Preset, load_preset

LARGEST_SIDE = 16_384  # pixels, four times what any of these models was trained for


def require_size(height: int, width: int, stride: int) -> None:
    """SettingError unless both are whole patches of two latent places of ``stride`` pixels each."""
    for name, pixels in (("height", height), ("width", width)):
        require_count(name, pixels, minimum=1, maximum=LARGEST_SIDE)
        unit = 2 * stride
        require(pixels % unit == 0, name, pixels, f"a multiple of {unit}, such as {nearest(pixels, unit)}")


def nearest(pixels: int, stride: int) -> int:
    return max(stride, round(pixels / stride) * stride)


def fitted(model: str, preset: str, changes: Mapping[str, Any], run: Sequence[Any]) -> Preset:
    """A model's preset for a run of these steps (shift, guidance). Changes that bring a policy need not fit."""
    row = load_preset(model, preset)
    return row if "policy" in changes else row.fit(*run)[0]


@dataclass
class Film:
    """Decoded frames in order, never more than ``limit``."""

    limit: int
    on_frames: Callable[[Tensor], None]
    pieces: list[Tensor] = field(default_factory=list)
    count: int = 0

    def add(self, piece: Tensor) -> None:
        piece = piece[:, :, : self.limit - self.count].float().cpu()
        if piece.shape[2]:
            self.pieces.append(piece)
            self.count += piece.shape[2]
            self.on_frames(piece)

    def last(self, frames: int) -> Tensor:
        return torch.cat(self.pieces, 2)[:, :, -frames:]
