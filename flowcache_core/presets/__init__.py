"""Named settings per model, one JSON file each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import SettingError, listed, require
from ..families import FAMILIES
from ..reading.json_text import read_object
from .preset import CurvePoint as CurvePoint
from .preset import Preset as Preset
from .rows import preset_of as preset_of

FOLDER = Path(__file__).parent
SCHEMA = 1
ACCEPTED = f'JSON with "schema": {SCHEMA} and "presets"'


def models() -> tuple[str, ...]:
    """Models that have presets."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def model_file(model: str) -> Mapping[str, Any]:
    """A model's whole file: ``shape``, ``run`` and ``presets``."""
    require(isinstance(model, str) and model in models(), "model", model, ", ".join(models()))
    return _model_file(model)


@cache
def _model_file(model: str) -> Mapping[str, Any]:
    return read_presets(FOLDER / f"{model}.json")


def read_presets(path: Path) -> dict[str, Any]:
    """A preset file, ours or a calibrated one. SettingError when it is none."""
    return checked(read_object(path, "preset file", ACCEPTED), "preset file", str(path))


def checked(content: dict[str, Any], field: str, value: str) -> dict[str, Any]:
    """The content of a preset file; SettingError for ``field`` when it is none, or one of a later version."""
    schema = content.get("schema")
    later = isinstance(schema, int) and schema > SCHEMA
    require(not later, f"{field}: schema", schema, f"{SCHEMA}; update FlowCache for a later one")
    known = isinstance(schema, int) and not isinstance(schema, bool) and schema == SCHEMA
    require(known and isinstance(content.get("presets"), dict), field, value, ACCEPTED)
    return content


def kind_of(model: str) -> str | None:
    """The family of a model with a published shape (``families.py``), None for a mini model."""
    kind: str | None = model_file(model).get("shape", {}).get("kind")
    return kind


def models_of(kind: str) -> list[str]:
    """Models with a published shape of this kind."""
    return [model for model in models() if kind_of(model) == kind]


def published_run(model: str, kind: str) -> Mapping[str, Any]:
    """The run that a model was published with; SettingError for a model of another kind."""
    require(model in models_of(kind), "model", model, ", ".join(models_of(kind)))
    run: Mapping[str, Any] = model_file(model)["run"]
    return run


def preset_names(model: str) -> tuple[str, ...]:
    return tuple(model_file(model)["presets"])


def load_preset(model: str, name: str) -> Preset:
    """SettingError naming the presets there are when ``name`` is none of them.

    ``name`` may also be ``FILE.json``, a file that ``calibrate`` wrote for this model, whose first preset is meant, or
    ``FILE.json:NAME`` for another one in it.
    """
    rows, where = model_file(model)["presets"], f"model {model}"
    require(isinstance(name, str), "preset", name, f"{listed(rows, 40)} ({where})")
    if file := re.fullmatch(r"(.*\.json)(?::([^/\\]+))?", name):
        rows, where = read_presets(Path(file[1]))["presets"], file[1]
        name = file[2] or next(iter(rows), "")
    if name not in rows:
        raise SettingError("preset", name, f"{listed(rows, 40)} ({where})")
    return parse_row(model, name, rows[name])


def parse_row(model: str, name: str, row: object) -> Preset:
    """One row of a model's ``presets``; SettingError naming what is missing in it or of another form."""
    wanted = FAMILIES[kind_of(model) or "wan"].requires
    return preset_of(model, name, row, wanted, wanted)
