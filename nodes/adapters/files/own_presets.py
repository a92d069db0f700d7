"""Where the host lets a user keep presets, and what is there."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ....flowcache_core.errors import SettingError
from ....flowcache_core.presets.own import OwnPreset, own_names


def own_folder() -> Path:
    """In the host's user folder, beside the user's workflows. Nothing is made before something is saved."""
    return Path(folder_paths.get_user_directory()) / "default" / "flowcache" / "presets"


def names() -> tuple[str, ...]:
    return own_names(own_folder())


def load(name: str, field: str = "preset") -> OwnPreset:
    """SettingError naming what there is, or what is wrong with the file."""
    return OwnPreset.load(own_folder(), name, field)


def text_of(name: str) -> str:
    """The preset as a workflow carries it; "" for a file that cannot be used, which says so when it is chosen."""
    try:
        return load(name).text
    except SettingError:
        return ""
