"""What the patch nodes put on a MODEL: one immutable settings object on the clone, read when sampling starts."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from ....flowcache_core.errors import SettingError
from ....flowcache_core.kv.settings import KVSettings
from ....flowcache_core.presets import Preset
from ....flowcache_core.report.record import Recorder, RunRecord
from ....flowcache_core.reuse.base import ReusePolicy
from ....flowcache_core.reuse.quantity import Quantity
from ....flowcache_core.schedule import Schedule, shift_of
from .outer import install_outer

KEY = "flowcache"


@dataclass(frozen=True)
class ReuseSettings:
    """What the Chunkwise Reuse node chose. ``preset`` is the row's name, or "custom"."""

    policy: ReusePolicy
    quantity: Quantity
    preset: str = "custom"
    device: str | None = None
    source: Preset | None = None

    @property
    def engine_fields(self) -> dict[str, Any]:
        """What these settings are to the core's EngineSettings."""
        return {"policy": self.policy, "quantity": self.quantity, "reuse_device": self.device}

    def check(self, schedule: Schedule) -> None:
        """SettingError when these settings are not for a run over ``schedule``."""
        if self.source is not None:
            self.source.fit(schedule.steps, shift_of(schedule))
        self.policy.note(schedule.steps)


@dataclass
class RecordSlot:
    """Where a sampler leaves the record of this MODEL's last run, for the report node. A result, never run state."""

    record: RunRecord | None = None

    def keep(self, recorder: Recorder) -> None:
        """Note the run as far as it went; the last record stays when it did not even start."""
        with suppress(ValueError):
            self.record = recorder.record()


@dataclass(frozen=True)
class FlowCacheSettings:
    """Settings carried by a MODEL clone (in ``model_options``, where objects are shared, not copied)."""

    reuse: ReuseSettings | None = None
    kv: KVSettings | None = None
    slot: RecordSlot = field(default_factory=RecordSlot, compare=False)

    @property
    def kv_settings(self) -> KVSettings:
        """What the KV Cache Compressor chose; everything kept without one."""
        return self.kv or KVSettings()


def settings_of(model_options: Mapping[str, Any]) -> FlowCacheSettings:
    """The settings on a model, or empty ones."""
    return model_options.get(KEY, FlowCacheSettings())


def refuse_other_caches(model_options: Mapping[str, Any]) -> None:
    """SettingError when EasyCache or LazyCache is on the same model: it would skip calls that write K/V."""
    other = model_options.get("transformer_options", {}).get("easycache")
    if other is not None:
        name = getattr(other, "name", "EasyCache")
        raise SettingError(
            "model", f"{name} on a model that FlowCache samples", f"one of the two: remove the {name} node"
        )


def with_slot(model: Any) -> Any:
    """The model itself, made by a loader of ours, with room for the record of a run."""
    model.model_options.setdefault(KEY, FlowCacheSettings())
    install_outer(model)
    return model


def last_record(model: Any) -> RunRecord:
    """What the last run of this MODEL left; SettingError when there was none."""
    if KEY not in model.model_options:
        accepted = (
            "the output of FlowCache Chunkwise Reuse, KV Cache Compressor or Load AR Video Model that was sampled"
        )
        raise SettingError("model", "a model without FlowCache settings", accepted)
    record = settings_of(model.model_options).slot.record
    if record is None:
        accepted = "the very MODEL that the guider got, sampled by an AR video sampler"
        raise SettingError("model", "a model that has not been sampled", accepted)
    return record


def expectation(model: Any, record: RunRecord) -> str | None:
    """Where this MODEL's run lies on its preset's calibrated curve; None for presets without one."""
    reuse = settings_of(model.model_options).reuse
    source = reuse.source if reuse else None
    return source.expectation(record.computed_share, record.started) if source else None


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
    refuse_other_caches(model.model_options)
    clone = model.clone()
    clone.model_options[KEY] = settings
    install_outer(clone)
    return clone
