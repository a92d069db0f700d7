"""The bundled models of Wan's architecture by name, for commands and benchmarks that take either."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from .errors import require
from .mini import MiniModel, load_mini
from .mini_scenes import load_mini_scenes

BUNDLED: Mapping[str, Callable[[str | torch.device, torch.dtype], MiniModel]] = {
    "mini": load_mini,
    "scenes": load_mini_scenes,
}


def load_bundled(name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> MiniModel:
    """One of the bundled models. SettingError for a name that there is not, ValueError for a damaged file."""
    require(name in BUNDLED, "model", name, ", ".join(BUNDLED))
    return BUNDLED[name](device, dtype)
