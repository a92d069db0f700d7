"""Files that are whole or absent: written under a temporary name and moved into place at the end."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import SettingError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it becomes ``path``, otherwise it is removed.

    Raises SettingError (field "out") when the folder cannot be written or the disk is full.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise SettingError("out", str(path), _accepted(error)) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def require_folder(folder: Path) -> None:
    """Make ``folder`` and prove that it can be written, before work is spent on what goes there."""
    with whole_file(folder / ".writable") as probe:
        probe.touch()
    (folder / ".writable").unlink(missing_ok=True)


def _accepted(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "a folder with free space (the disk is full)"
    return f"a folder that can be written ({error.strerror or error})"
