"""The engine's run on several ranks: every rank calls it with the same arguments and gets the same latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..engine import EngineSettings, generate
from ..errors import require
from ..models.magi.denoiser import MagiDenoiser
from ..models.wan.denoiser import WanDenoiser
from ..noise import NoiseSource
from ..report.events import Event
from ..sweep.task import sources
from .alike import require_alike
from .decisions import told_by_first
from .fits import require_shareable
from .magi import MagiOnRanks
from .mesh import Mesh
from .wan import WanOnRanks


def on_ranks(denoiser: WanDenoiser | MagiDenoiser, mesh: Mesh) -> WanDenoiser | MagiDenoiser:
    """This rank's part of ``denoiser``: itself where it is alone. SettingError when the mesh does not fit the model."""
    if mesh.shape.size == 1:
        return denoiser
    plain = type(denoiser) in (WanDenoiser, MagiDenoiser)
    require(plain, "ranks", mesh.shape.size, f"1: {type(denoiser).__name__} is not made for several")
    values: dict[str, Any] = {
        field.name: getattr(denoiser, field.name) for field in dataclasses.fields(denoiser) if field.init
    }
    if isinstance(denoiser, MagiDenoiser):
        return MagiOnRanks(**values, mesh=mesh)
    return WanOnRanks(**values, mesh=mesh)


def generate_on_ranks(
    mesh: Mesh,
    denoiser: WanDenoiser | MagiDenoiser,
    settings: EngineSettings,
    noise: Tensor,
    *,
    prefix: Tensor | None = None,
    noise_source: NoiseSource | None = None,
    observe: Callable[[Event], None] = lambda event: None,
    around: Callable[[Denoiser], Denoiser] | None = None,
) -> Tensor:
    """As :func:`..engine.generate`. denoiser: the whole one, as one rank would run it. around: what the engine is given
    in the place of this rank's part.

    Further errors: SettingError when ranks were given other settings, inputs or weights, or the mesh does not fit the
    model; :class:`.errors.RankLost` when a rank ends or does not answer within the mesh's timeout.
    """
    require_shareable(settings, mesh.shape)
    mine: Denoiser = on_ranks(denoiser, mesh)
    mine = mine if around is None else around(mine)
    drawn = None if noise_source is None else noise_source(0, 0, noise[:, :, :1])
    versions = (sources(), torch.__version__)
    alike = {"settings": settings, "model": denoiser, "noise": noise, "noise source": drawn, "prefix": prefix}
    require_alike(mesh, {"version of FlowCache or torch": versions, **alike})
    return generate(
        mine,
        settings,
        noise,
        prefix=prefix,
        noise_source=noise_source,
        observe=observe,
        following=lambda state: told_by_first(state, settings.policy, mesh),
    )
