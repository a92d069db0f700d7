"""Whether a path is a file that can be read at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import SHOWN, Found, SettingError, one_line


def require_file(path: Path, field: str, accepted: str) -> int:
    """The file's size in bytes. SettingError when it is absent, empty, a folder, a device, or may not be read."""
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            raise SettingError(field, Found("unreadable: a folder"), f"a file: {accepted}")
        if not stat.S_ISREG(found.st_mode):
            raise SettingError(field, Found("unreadable: a device or a pipe"), f"a file: {accepted}")
        with open(path, "rb") as file:
            file.read(1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, or our own
        if isinstance(error, SettingError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, FileNotFoundError):
            nothing = Found(f"unreadable: there is no {one_line(str(path), SHOWN)}")
            raise SettingError(field, nothing, f"an existing file: {accepted}") from error
        raise SettingError(field, Found(f"unreadable: {reason}"), accepted) from error
    if found.st_size == 0:
        raise SettingError(field, Found("unreadable: an empty file"), accepted)
    return found.st_size


def is_folder(path: Path) -> bool:
    """``Path.is_dir`` that answers no, too, for names that no file system takes."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """``Path.is_file`` that answers no, too, for names that no file system takes."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
