"""Presets of a user's own: one JSON file each, of the form of the shipped ones, or the same text inside a workflow.

A file is named after the one preset in it. What it says is checked whenever it is read: anybody may have written it.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import Found, SettingError, listed, require
from ..files import write_json
from ..reading.json_text import parse_object, read_object
from . import ACCEPTED, SCHEMA, Preset, checked, preset_of
from .sparse import SparsePreset, parse_sparse_row

if TYPE_CHECKING:
    from typing_extensions import Self

FORM = re.compile(r"[^\W_][\w .()+-]*")
LONGEST = 60  # characters of a name; file systems take 255 bytes
DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # of Windows, whatever their ending
STEPS = frozenset({"steps"})


@dataclass(frozen=True)
class OwnRow(ABC):
    """A preset with its name and its row as files state it. key: of the rows in a file; folder: where such are kept;
    what: in words.
    """

    key: ClassVar[str]
    folder: ClassVar[str]
    what: ClassVar[str]

    name: str
    row: Mapping[str, Any]

    @classmethod
    @abstractmethod
    def of(cls, name: str, row: object) -> Self:
        """SettingError naming what in the row is missing, or of another form."""

    @classmethod
    def parse(cls, text: str, field: str) -> Self:
        """From a JSON text; SettingError for ``field``."""
        return cls.from_document(parse_object(text, field, ACCEPTED), field)

    @classmethod
    def load(cls, folder: Path, name: str, field: str = "preset") -> Self:
        """The preset of that name in ``folder``; SettingError naming those there are, or what its file lacks."""
        names = own_names(folder)
        require(name in names, field, name, listed(names, 40) or "nothing: no preset has been saved")
        path = folder / f"{name}.json"
        return cls.from_document(read_object(path, f"{field} {path.name}", ACCEPTED), f"{field} {path.name}")

    @classmethod
    def from_document(cls, content: dict[str, Any], field: str) -> Self:
        """From a file's content; SettingError for ``field``, also where it holds a preset of another kind."""
        content = checked(content, field, "something else")
        rows: Any = content.get(cls.key, {})
        other = kind_of_document(content)
        found = (
            f"a preset of {other.what}"
            if other is not cls
            else listed(rows if isinstance(rows, Mapping) else ()) or "none"
        )
        ok = other is cls and isinstance(rows, Mapping) and len(rows) == 1
        require(ok, f"{field}: {cls.key}", Found(found), f"one preset, of {cls.what}")
        assert isinstance(rows, Mapping)
        ((name, row),) = rows.items()
        try:
            return cls.of(name, row)
        except SettingError as error:
            raise error.within(field) from error

    def renamed(self, name: str) -> Self:
        return self.of(name, self.row)

    @property
    def text(self) -> str:
        """As :meth:`parse` reads it."""
        return json.dumps(self.document, separators=(",", ":"))

    @property
    def document(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "presets": {}, self.key: {self.name: dict(self.row)}}

    def save(self, folder: Path) -> Path:
        """The file is whole or absent; one of the same name is replaced."""
        path = folder / f"{self.name}.json"
        write_json(path, self.document, "name")
        return path


def recorded_on(row: object) -> str:
    """The model that the row's evidence names, for sentences."""
    evidence = row.get("evidence") if isinstance(row, dict) else None
    model = evidence.get("model") if isinstance(evidence, dict) else None
    return model if isinstance(model, str) and model else "another model"


@dataclass(frozen=True)
class OwnPreset(OwnRow):
    """Which steps are computed."""

    key: ClassVar[str] = "presets"
    folder: ClassVar[str] = "presets"
    what: ClassVar[str] = "steps, for FlowCache Chunkwise Reuse"

    preset: Preset

    @classmethod
    def of(cls, name: str, row: object) -> Self:
        require_name("name", name)
        preset = preset_of(recorded_on(row), name, row, STEPS, STEPS | {"shift"})
        assert isinstance(row, dict)
        return cls(name, row, preset)


@dataclass(frozen=True)
class OwnHeads(OwnRow):
    """How sparsely every attention head attends."""

    key: ClassVar[str] = "sparse"
    folder: ClassVar[str] = "heads"
    what: ClassVar[str] = "attention heads, for FlowCache Sparse Attention"

    preset: SparsePreset

    @classmethod
    def of(cls, name: str, row: object) -> Self:
        require_name("name", name)
        preset = parse_sparse_row(recorded_on(row), name, row)
        assert isinstance(row, dict)
        return cls(name, row, preset)


KINDS: tuple[type[OwnRow], ...] = (OwnPreset, OwnHeads)


def kind_of_document(content: Mapping[str, Any]) -> type[OwnRow]:
    """Which kind a preset file's content is of: of heads where it has only such."""
    return OwnHeads if content.get(OwnHeads.key) and not content.get(OwnPreset.key) else OwnPreset


def own_row(content: dict[str, Any], field: str) -> OwnRow:
    """A preset of either kind, from a file's content. SettingError for ``field``."""
    return kind_of_document(content).from_document(content, field)


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
