"""What the patch nodes put on a MODEL: one immutable settings object, carried by the clone, read when sampling starts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from ...flowcache_core.errors import SettingError
from ...flowcache_core.kv.settings import KVSettings
from ...flowcache_core.report.record import RunRecord
from ...flowcache_core.reuse.base import ReusePolicy
from ...flowcache_core.reuse.quantity import Quantity

KEY = "flowcache"


@dataclass(frozen=True)
class ReuseSettings:
    """What the Chunkwise Reuse node chose. ``preset`` is the row's name, or "custom"."""

    policy: ReusePolicy
    quantity: Quantity
    preset: str = "custom"
    device: str | None = None


@dataclass
class RecordSlot:
    """Where a sampler leaves the record of the last run of this MODEL, for the report node. A result, never run state."""

    record: RunRecord | None = None


@dataclass(frozen=True)
class FlowCacheSettings:
    """Settings carried by a MODEL clone (in ``model_options``, where objects are shared, not copied)."""

    reuse: ReuseSettings | None = None
    kv: KVSettings | None = None
    slot: RecordSlot = field(default_factory=RecordSlot, compare=False)


def settings_of(model_options: dict[str, Any]) -> FlowCacheSettings:
    """The settings on a model, or empty ones."""
    return model_options.get(KEY, FlowCacheSettings())


def with_reuse(model: Any, reuse: ReuseSettings) -> Any:
    """A clone of the host's ModelPatcher that carries ``reuse``; SettingError when it already carries some."""
    current = settings_of(model.model_options)
    if current.reuse is not None:
        raise SettingError("model", "already has FlowCache Chunkwise Reuse", "one such node; remove one of the two")
    return _carry(model, replace(current, reuse=reuse, slot=RecordSlot()))


def with_kv(model: Any, kv: KVSettings) -> Any:
    """A clone of the host's ModelPatcher that carries ``kv``; SettingError when it already carries some."""
    current = settings_of(model.model_options)
    if current.kv is not None:
        raise SettingError("model", "already has a KV Cache Compressor", "one such node; remove one of the two")
    return _carry(model, replace(current, kv=kv, slot=RecordSlot()))


def _carry(model: Any, settings: FlowCacheSettings) -> Any:
    clone = model.clone()
    clone.model_options[KEY] = settings
    return clone
