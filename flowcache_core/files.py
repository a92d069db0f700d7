"""Files and folders that are whole or absent: written under a name of their own and moved into place at the end.

Two writers of one name never meet in one file: whoever ends last wins. What a writer that was killed left behind is
removed by the next one in the same folder: its name says which machine and process made it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import secrets
import shutil
import stat
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import SettingError, require

_PARTS = ".flowcache-*-*-*.part"  # machine, process, token
_FORGOTTEN = 24 * 3600.0  # seconds without a change, after which a part of another machine's writer is taken for dead


@contextmanager
def whole_file(path: Path, field: str = "out") -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it becomes ``path``, otherwise it is removed.

    Raises SettingError naming ``field`` when the folder cannot be written or the disk is full.
    """
    with _named(path, field), _part(path.parent) as part:
        yield part
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        os.replace(part, path)


@contextmanager
def whole_folder(folder: Path, field: str = "out") -> Iterator[Path]:
    """Yield a temporary folder; on success all its files move into ``folder``, otherwise it stays as it was.

    Files of the same names are replaced all together or not at all; other files stay. Raises as :func:`whole_file`.
    """
    with _named(folder, field), _part(folder) as part:
        part.mkdir()
        yield part
        with only_writer(folder), _part(folder) as old:
            _exchange(part, folder, old)


def write_json(path: Path, content: Mapping[str, Any], field: str = "out") -> None:
    """``content`` as a whole file; ValueError for numbers that JSON cannot hold."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    with whole_file(path, field) as part:
        part.write_text(text, encoding="utf-8")


def require_file(path: Path, field: str = "out", room: int = 0) -> None:
    """Prove that ``path`` can be written, before work is spent on it; makes its folder. room: bytes it will take."""
    with _named(path, field):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            mode = stat.S_IFREG
        except ValueError as error:  # a zero byte in the name
            raise OSError(errno.EINVAL, str(error)) from error
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        require(stat.S_ISREG(mode), field, str(path), "the name of a file, not of a device or a pipe")
        _probe(path.parent)
    _require_room(path.parent, path, field, room)


def require_folder(folder: Path, field: str = "out", names: Iterable[str] = (), room: int = 0) -> None:
    """Make ``folder`` and prove that it, and files of these names in it, can be written."""
    with _named(folder, field):
        _probe(folder)
    for name in names:
        require_file(folder / name, field)
    _require_room(folder, folder, field, room)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here for ``folder``. For the moment in which files change their places."""
    if sys.platform == "win32":
        import msvcrt

        name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        with open(Path(tempfile.gettempdir()) / f"flowcache-{name}.lock", "a+b") as handle:
            while True:
                handle.seek(0)
                with suppress(OSError):
                    msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
                    break
                time.sleep(0.05)
            yield
    else:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks: files are whole all the same
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


@contextmanager
def _part(folder: Path) -> Iterator[Path]:
    """A name in ``folder`` that nobody else has; whatever stands under it at the end is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    part = folder / f".flowcache-{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.part"
    try:
        yield part
    finally:
        _remove(part)


def _exchange(part: Path, folder: Path, old: Path) -> None:
    """Move the files of ``part`` into ``folder``. Those of before leave first, so that both are never there at once."""
    names = [file.name for file in part.iterdir()]
    old.mkdir()
    try:
        for name in names:
            if (folder / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
            with suppress(FileNotFoundError):
                os.replace(folder / name, old / name)
        for name in names:
            os.replace(part / name, folder / name)
    except BaseException:
        for name in names:
            if (old / name).exists():
                os.replace(old / name, folder / name)
            elif not (part / name).exists():
                (folder / name).unlink(missing_ok=True)
        raise


def _sweep(folder: Path) -> None:
    """Remove what writers that are no more left in ``folder``."""
    for part in folder.glob(_PARTS):
        machine, pid = part.name.split("-")[1:3]
        with suppress(OSError, ValueError):
            dead = machine == _machine() and not _alive(int(pid))
            if dead or time.time() - part.stat().st_mtime > _FORGOTTEN:
                _remove(part)


def _remove(part: Path) -> None:
    with suppress(OSError):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def _machine() -> str:
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _alive(pid: int) -> bool:
    """Whether a process of this machine has this id. Windows cannot be asked without harm: there age alone decides."""
    if os.name == "nt":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _probe(folder: Path) -> None:
    with _part(folder) as part:
        part.touch()


def _require_room(folder: Path, shown: Path, field: str, room: int) -> None:
    free = shutil.disk_usage(folder).free
    accepted = f"a place with {room / 1e6:.0f} MB of free space (there are {free / 1e6:.0f} MB)"
    require(free >= room, field, str(shown), accepted)


@contextmanager
def _named(path: Path, field: str) -> Iterator[None]:
    """What the file system refuses as an error that names the field and the path."""
    try:
        yield
    except OSError as error:
        raise SettingError(field, str(path), _accepted(error)) from error


def _accepted(error: OSError) -> str:
    if isinstance(error, IsADirectoryError):
        return "a file, not a folder"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return "a folder that can be written (a file is in its place)"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "a folder with free space (the disk is full)"
    return f"a folder that can be written ({error.strerror or error})"
