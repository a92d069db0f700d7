"""From a name in a node's list to the file it stands for."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ....flowcache_core.errors import SettingError
from .weight_files import whole_models


def listed_file(folder: str, name: str, field: str) -> str:
    """The full path of a listed choice; SettingError for anything else, a path that leaves the folder included."""
    files = folder_paths.get_filename_list(folder)
    path = None
    if name in whole_models(files):
        beside = next(file for file in files if whole_models([file]) == [name])
        path = folder_paths.get_full_path(folder, beside)
    if path is None:
        raise SettingError(field, name, f"a file of models/{folder}")
    return str(Path(path).with_name(Path(name).name))
