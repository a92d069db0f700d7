"""Sparse attention as the bundled models' command lines take it."""

from __future__ import annotations

from dataclasses import replace

from ..calibrate.bundled import Mini, Scenes
from ..calibrate.runs import Specimen
from ..errors import SettingError, require
from ..presets.sparse import load_sparse
from ..sparse.build import CHOICES, sparse_from_text
from ..sparse.settings import SparseSettings
from ..sparse.top_k import TopK
from ..sparse.window import Window

SPARSE = (
    f"sparse attention: {', '.join(CHOICES)}, their fields as JSON, the name of a calibrated row (per-head), or a "
    "file that calibrate-heads wrote"
)
BLOCK, STRIDE = 16, 4
"""A latent frame of the mini model has 16 tokens."""
MODELS: dict[str, type[Specimen]] = {one.name: one for one in (Mini, Scenes)}


def sparse_of(text: str | None, density: float | None, model: str) -> SparseSettings | None:
    """The settings for a bundled model. SettingError for what there is not, and for a calibration of other weights."""
    if text is None:
        require(density is None, "density", density, "nothing without --sparse")
        return None
    if text.lstrip().startswith("{") or text in CHOICES:
        found = sparse_from_text(text, block=BLOCK, stride=STRIDE)
        if density is None:
            return found
        accepted = f"nothing with {found.method.name}, which takes p"
        if not isinstance(found.method, TopK | Window):
            raise SettingError("density", density, accepted)
        return replace(found, method=replace(found.method, density=density))
    return SparseSettings(load_sparse(model, text, MODELS[model]().sha256).at(density))
