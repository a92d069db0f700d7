"""The file that calibrations write: presets of one model, in the form of the shipped ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import SettingError
from ..files import only_writer, write_json
from ..presets import SCHEMA, read_presets


def keep(path: Path, rows: dict[str, Any]) -> Path:
    """:func:`write`; where that fails after all, the rows are printed, so that an hour's work is not lost."""
    try:
        return write(path, rows)
    except SettingError:
        print(json.dumps({"schema": SCHEMA, "presets": rows}))
        raise


def write(path: Path, rows: dict[str, Any]) -> Path:
    """The presets as a file of the form of presets/*.json; rows of other names that are there already stay."""
    with only_writer(path.parent):  # of two calibrations into one file neither loses its rows
        content: dict[str, Any] = read_presets(path) if path.is_file() else {"schema": SCHEMA, "presets": {}}
        content["presets"] = {**content["presets"], **rows}
        write_json(path, content)
    return path
