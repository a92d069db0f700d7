"""Whether a calibration of heads is one of the model that runs."""

from __future__ import annotations

from typing import Any

from ....flowcache_core.architecture import architecture_of
from ....flowcache_core.errors import Found, require
from ....flowcache_core.presets.sparse import UNREAD, SparsePreset
from ..files.weights_of import file_of, identity
from .recorded import model_name


def fit_heads(source: SparsePreset, patcher: Any, *, shipped: bool) -> None:
    """SettingError when ``source`` was measured on another architecture, or is one of ours (``shipped``) and was
    measured on another file. Layers and heads are the table's own affair (:meth:`Calibrated.check_model`).
    """
    here, there = architecture_of(patcher.model.diffusion_model), source.evidence.get("architecture", "")
    accepted = f"{there}, of {source.model}, on which its heads were measured; or measure heads with this model"
    if source.model == there:  # a model whose file is not known is called by its architecture
        accepted = f"{there}, on which its heads were measured; or measure heads with this model"
    require(there in ("", here), f"preset {source.name}", f"a model {here}", accepted)
    transformer, table = patcher.model.diffusion_model, source.method.table
    assert table is not None
    sizes = getattr(transformer, "config", transformer)
    layers, heads = (getattr(sizes, name, None) for name in ("num_layers", "num_heads"))
    if isinstance(layers, int) and isinstance(heads, int):
        source.method.check_model(layers, heads)
    path = file_of(patcher)
    if shipped and path is not None and table.subject.model != UNREAD:
        accepted = f"the bundled model {source.model}, on which it was measured; or measure heads with this model"
        require(identity(patcher) == table.subject.model, "preset", Found(f"a model from {path.name}"), accepted)


def heads_notes(source: SparsePreset | None, patcher: Any) -> tuple[str, ...]:
    """A sentence where the heads were measured on another file of the same architecture."""
    measured = "" if source is None else source.evidence.get("model", "")
    name = model_name(patcher)
    if source is None or not measured or measured == name:
        return ()
    return (f"heads of preset {source.name} were measured on {measured}, and this is {name}: look at the result",)
