"""How fast a model ran on this machine: noted after each run, so that the next one's time can be said before it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths

from ....flowcache_core.dry_run.estimate import Model
from ....flowcache_core.errors import SettingError
from ....flowcache_core.files import write_json
from ....flowcache_core.reading.json_text import read_object
from ....flowcache_core.report.events import Event
from ....flowcache_core.report.record import RunRecord
from .graph import NotKnownError
from .model_sizes import of_patcher

KEPT = 64  # models
SCHEMA = 1


def file() -> Path:
    return Path(folder_paths.get_user_directory()) / "default" / "flowcache" / "speed.json"


def key_of(model: Model) -> str:
    config, dtype = model.config, str(model.dtype).removeprefix("torch.")
    device = comfy.model_management.get_torch_device_name(comfy.model_management.get_torch_device())
    return f"{type(config).__name__} {config.dim}x{config.num_layers} {dtype}, {device}"


def note_speed(patcher: Any, record: RunRecord, batch: int) -> None:
    """A finished run's FLOPs and seconds, for the next one. That it cannot be written ends no run."""
    if not record.seconds or record.not_finite:
        return
    try:
        model = of_patcher(patcher, 1)
        events: list[Event] = [*record.steps_taken, *record.cache_passes, *record.window_passes, *record.densities]
        flops = batch * model.shape(record.started.steps).total(events)
        known = {key: value for key, value in _known().items() if key != key_of(model)}
        newest = dict(list(known.items())[-(KEPT - 1) :])
        place = file()
        place.parent.mkdir(parents=True, exist_ok=True)
        rate = flops / record.seconds
        write_json(place, {"schema": SCHEMA, "flops_per_second": {**newest, key_of(model): rate}}, "speed.json")
    except NotKnownError:
        return
    except (SettingError, OSError, ValueError) as error:
        logging.warning("FlowCache: how fast this run was is not kept: %s", error)


def seconds(model: Model, flops: float) -> float | None:
    """How long a run of so many FLOPs will take; None before the first run of this model here."""
    rate = _known().get(key_of(model))
    return flops / rate if rate else None


def _known() -> dict[str, float]:
    """Empty where there is no file, or a damaged one: it is written anew."""
    if not file().is_file():
        return {}
    try:
        content = read_object(file(), "speed.json", "what earlier runs left")
    except SettingError:
        return {}
    found = content.get("flops_per_second")
    if not isinstance(found, dict) or content.get("schema") != SCHEMA:
        return {}
    return {key: rate for key, rate in found.items() if isinstance(rate, float) and rate > 0}
