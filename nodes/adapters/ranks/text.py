"""What the node says of a model before it runs."""

from __future__ import annotations

from typing import Any

from ....flowcache_core.models.magi.transformer import MagiTransformer
from .choice import Devices, RanksChoice
from .model_file import model_file


def described(patcher: Any, choice: RanksChoice, devices: Devices) -> str:
    """SettingError for a model that ranks cannot load, and for numbers that do not fit it."""
    if choice.most(devices) == 1:
        return f"One device here ({devices}): the model runs on it as without this node."
    return choice.describe(model_file(patcher).shareable(branches_of(patcher.model)), devices)


def branches_of(model: Any) -> int:
    """Guidance forwards that a run may have: of Wan's kind the guider decides."""
    if isinstance(model.diffusion_model, MagiTransformer):
        return 1 if model.variant.distilled or model.variant.guidance is None else 3
    return 2
