"""Families of models: one row for each, with what commands and presets must know of it beside its numbers.

A model's JSON file in ``presets/`` names its family in ``shape.kind`` and its order of chunks in ``run.plan``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .cost.shapes import MagiShape, ModelShape, WanShape
from .denoiser import ModelView
from .models.magi.denoiser import MagiDenoiser
from .models.magi.transformer import load_magi
from .models.wan.denoiser import WanDenoiser
from .models.wan.skyreels_checkpoint import load_skyreels
from .plan import PLANS
from .plan.base import Plan
from .plan.staggered import VideoWindow, overlap_windows
from .schedule import Schedule, magi, skyreels


@dataclass(frozen=True)
class Family:
    """shape: of (a file's ``shape`` without its kind, steps, nearly-clean pass or not). schedule: of (steps, shift).

    requires: what a calibrated preset must say of the runs it is for. clean_pass: whether such models encode a finished
    chunk again. load: the transformer from its official file or folder. view: of a transformer, what policies and
    distances ask of it.
    """

    shape: Callable[[Mapping[str, Any], int, bool], ModelShape]
    schedule: Callable[[int, float], Schedule]
    requires: frozenset[str]
    clean_pass: bool
    load: Callable[[Path], Any]
    view: Callable[[Any], ModelView]

    def plans(self, run: Mapping[str, Any]) -> tuple[Plan, ...]:
        """The windows of a model's run, in order: one plan each."""
        kind = PLANS[run["plan"]].of(run)
        windows = [VideoWindow(0, run["frames"], 0)]
        if "base_frames" in run:
            windows = [*overlap_windows(run["frames"], run["base_frames"], run["overlap_frames"], run["chunk_frames"])]
        return tuple(kind.plan(part.frames, run["steps"], part.prefix_frames) for part in windows)


def _magi_shape(fields: Mapping[str, Any], steps: int, nearly_clean: bool) -> ModelShape:
    return MagiShape(**fields, nearly_clean_from=3 * steps // 4 if nearly_clean else None)


def _wan_view(model: Any) -> ModelView:
    return WanDenoiser(model, {0: (torch.empty(1, 0, model.config.text_dim),)}, fps=24)


def _magi_view(model: Any) -> ModelView:
    nothing = torch.zeros(1, 1, model.config.text_dim), torch.zeros(1, 1, dtype=torch.bool)
    return MagiDenoiser(model, {0: nothing})


FAMILIES: dict[str, Family] = {
    "wan": Family(
        shape=lambda fields, steps, nearly_clean: WanShape(**fields),
        schedule=skyreels,
        requires=frozenset({"steps", "shift"}),
        clean_pass=False,
        load=load_skyreels,
        view=_wan_view,
    ),
    "magi": Family(
        shape=_magi_shape,
        schedule=lambda steps, shift: magi(steps),
        requires=frozenset({"steps"}),  # its noise levels are a curve of their own
        clean_pass=True,
        load=load_magi,
        view=_magi_view,
    ),
}
