"""Presets of a user's own: one JSON file each, of the form of the shipped ones, or the same text inside a workflow.

A file is named after the one preset in it. What it says is checked whenever it is read: anybody may have written it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SettingError, listed, require
from ..files import write_json
from ..reading.json_text import parse_object, read_object
from . import ACCEPTED, SCHEMA, Preset, checked, preset_of

FORM = re.compile(r"[^\W_][\w .()+-]*")
LONGEST = 60  # characters of a name; file systems take 255 bytes
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # of Windows, whatever their ending
STEPS = frozenset({"steps"})


@dataclass(frozen=True)
class OwnPreset:
    """A preset with its name and its row as files state it."""

    name: str
    row: Mapping[str, Any]
    preset: Preset

    @classmethod
    def of(cls, name: str, row: object) -> OwnPreset:
        """SettingError naming what in the row is missing, of another form, or does not fit its steps."""
        require_name("name", name)
        evidence = row.get("evidence") if isinstance(row, dict) else None
        model = evidence.get("model") if isinstance(evidence, dict) else None
        model = model if isinstance(model, str) and model else "another model"
        preset = preset_of(model, name, row, STEPS, STEPS | {"shift"})
        assert isinstance(row, dict)
        return cls(name, row, preset)

    @classmethod
    def parse(cls, text: str, field: str) -> OwnPreset:
        """From a JSON text; SettingError for ``field``."""
        return cls._only(parse_object(text, field, ACCEPTED), field)

    @classmethod
    def load(cls, folder: Path, name: str, field: str = "preset") -> OwnPreset:
        """The preset of that name in ``folder``; SettingError naming those there are, or what its file lacks."""
        names = own_names(folder)
        require(name in names, field, name, listed(names, 40) or "nothing: no preset has been saved")
        path = folder / f"{name}.json"
        return cls._only(read_object(path, f"{field} {path.name}", ACCEPTED), f"{field} {path.name}")

    @classmethod
    def _only(cls, content: dict[str, Any], field: str) -> OwnPreset:
        rows = checked(content, field, "something else")["presets"]
        require(len(rows) == 1, f"{field}: presets", listed(rows) or "none", "one preset")
        ((name, row),) = rows.items()
        try:
            return cls.of(name, row)
        except SettingError as error:
            raise error.within(field) from error

    def renamed(self, name: str) -> OwnPreset:
        return OwnPreset.of(name, self.row)

    @property
    def text(self) -> str:
        """As :meth:`parse` reads it."""
        return json.dumps(self.document, separators=(",", ":"))

    @property
    def document(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "presets": {self.name: dict(self.row)}}

    def save(self, folder: Path) -> Path:
        """The file is whole or absent; one of the same name is replaced."""
        path = folder / f"{self.name}.json"
        write_json(path, self.document, "name")
        return path


def require_name(field: str, name: object) -> None:
    """SettingError unless ``name`` can name a preset and, with an ending, a file on every system."""
    plain = isinstance(name, str) and len(name) <= LONGEST and FORM.fullmatch(name) and name[-1] not in " ."
    fits = bool(plain) and not DEVICES.fullmatch(str(name))
    accepted = f"1 to {LONGEST} letters, digits, spaces and _ . ( ) + -, beginning with a letter or digit"
    require(fits, field, name, accepted)


def own_names(folder: Path) -> tuple[str, ...]:
    """Of the files in ``folder``, whether or not they can be read."""
    return tuple(sorted(_names(folder), key=str.casefold))


def _names(folder: Path) -> Iterator[str]:
    try:
        found = [path.stem for path in folder.glob("*.json")]
    except OSError:
        return
    for name in found:
        try:
            require_name("name", name)
        except SettingError:
            continue
        yield name
