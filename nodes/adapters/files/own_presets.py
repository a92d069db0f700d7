"""Where the host lets a user keep presets, and what is there."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import folder_paths

from ....flowcache_core.errors import SettingError
from ....flowcache_core.presets import Preset
from ....flowcache_core.presets.own import OwnPreset, OwnRow, own_names

OwnT = TypeVar("OwnT", bound=OwnRow)


def own_folder(kind: type[OwnRow] = OwnPreset) -> Path:
    """In the host's user folder, beside the user's workflows. Nothing is made before something is saved."""
    return Path(folder_paths.get_user_directory()) / "default" / "flowcache" / kind.folder


def names(kind: type[OwnRow] = OwnPreset) -> tuple[str, ...]:
    return own_names(own_folder(kind))


def load(name: str, field: str = "preset") -> OwnPreset:
    """SettingError naming what there is, or what is wrong with the file."""
    return load_of(OwnPreset, name, field)


def load_of(kind: type[OwnT], name: str, field: str = "preset") -> OwnT:
    """Of another kind; as :func:`load`."""
    return kind.load(own_folder(kind), name, field)


def usable() -> tuple[tuple[Preset, ...], tuple[str, ...]]:
    """The user's presets, and a sentence on each file that is none."""
    found, unread = [], []
    for name in names():
        try:
            found.append(load(name).preset)
        except SettingError as error:
            unread.append(f"a file of your presets is left out: {error}")
    return tuple(found), tuple(unread)


def text_of(name: str, kind: type[OwnRow] = OwnPreset) -> str:
    """The preset as a workflow carries it; "" for a file that cannot be used, which says so when it is chosen."""
    try:
        return load_of(kind, name).text
    except SettingError:
        return ""
