"""The virtual environment of this checkout: made by the first call, repaired after a killed one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .processes import INTERRUPTED, DevError, run, say, succeeds


def python_in(environment: Path, windows: bool = os.name == "nt") -> Path:
    """The interpreter of a virtual environment."""
    return environment / "Scripts" / "python.exe" if windows else environment / "bin" / "python"


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a lock for ``folder``: two first calls must not install over each other. A killed holder frees it."""
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    with open(Path(tempfile.gettempdir()) / f"flowcache-dev-{name}.lock", "a+b") as handle:
        if os.name == "nt":
            import msvcrt

            while True:
                handle.seek(0)
                with contextlib.suppress(OSError):
                    msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
                    break
                time.sleep(0.5)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Environment:
    """The virtual environment of this checkout, and the stamp that says what is installed in it."""

    folder: Path
    requirements: Path

    INSTALLING = "installing"

    @property
    def python(self) -> Path:
        return python_in(self.folder)

    @property
    def stamp(self) -> Path:
        return self.folder / ".flowcache-stamp"

    def wanted(self) -> str:
        """What the stamp holds once all of the requirements are installed for this version of Python."""
        digest = hashlib.sha256(self.requirements.read_bytes()).hexdigest()
        return f"python {sys.version_info[0]}.{sys.version_info[1]} requirements {digest}"

    def stamped(self) -> str | None:
        try:
            return self.stamp.read_text(encoding="utf-8").strip()
        except OSError:
            return None

    def ready(self) -> bool:
        return self.python.exists() and self.stamped() == self.wanted()

    def version(self) -> str | None:
        """``major.minor`` of the environment's Python, as its pyvenv.cfg states it."""
        try:
            config = (self.folder / "pyvenv.cfg").read_text(encoding="utf-8")
        except OSError:
            return None
        found = re.search(r"^version(?:_info)?\s*=\s*(\d+\.\d+)", config, re.MULTILINE)
        return found[1] if found else None

    def prepare(self) -> Path:
        """Make or repair the environment where needed and return its interpreter."""
        if not self.ready():
            with only_one(self.folder):
                try:
                    if not self.ready():
                        self._install()
                except OSError as error:
                    raise DevError(f"{self.folder} could not be made: {error}") from error
        return self.python

    def _install(self) -> None:
        current = f"{sys.version_info[0]}.{sys.version_info[1]}"
        state = self.stamped()
        if not self._usable(current, state):
            if Path(sys.prefix) == self.folder:
                raise DevError(f"{self.folder} is incomplete and running this command: start it with another Python.")
            if state is None and self.version() not in (None, current):
                raise DevError(
                    f"{self.folder} was made by hand for Python {self.version()}, this is {current}: "
                    "delete it, call dev.py with that Python, or use --no-venv."
                )
            say(f"Making {self.folder} (Python {current}).")
            if state is not None:  # only what dev.py made is ever deleted
                shutil.rmtree(self.folder)
            self.folder.mkdir(exist_ok=True)
            self._write_stamp(self.INSTALLING)
            code = run([sys.executable, "-m", "venv", self.folder])
            if code == INTERRUPTED:
                raise KeyboardInterrupt
            if code != 0:
                raise DevError(
                    "Could not make a virtual environment: the lines above say why. "
                    "On Debian and Ubuntu: apt install python3-venv. Or use --no-venv."
                )
        say("Installing the pinned development requirements: once, a few minutes.")
        if sys.platform == "linux" and not {"PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"} & os.environ.keys():
            say(
                "(PyPI's torch for Linux is the large CUDA build. A machine without a GPU needs only the small one: "
                "stop, set PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu and call again.)"
            )
        self._write_stamp(self.INSTALLING)
        pip: list[str | Path] = [self.python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        if not sys.stdout.isatty():
            pip.append("--quiet")
        code = run([*pip, "-r", self.requirements])
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code != 0:
            raise DevError(
                f"pip could not install {self.requirements.name} (exit code {code}); the lines above say why. "
                "Without a network it cannot work; behind a proxy set HTTPS_PROXY, with a mirror PIP_INDEX_URL. "
                "torch needs a 64-bit Python of a version it has been built for. Then call the same command again."
            )
        self._write_stamp(self.wanted())

    def _usable(self, current: str, state: str | None) -> bool:
        """Whether pip can go on in what is there; a half-done installation of ours is made anew instead."""
        if state == self.INSTALLING or not self.python.exists() or self.version() != current:
            return False
        return succeeds([self.python, "-m", "pip", "--version"]) or succeeds([self.python, "-m", "ensurepip"])

    def _write_stamp(self, text: str) -> None:
        part = self.stamp.with_suffix(".part")
        part.write_text(text + "\n", encoding="utf-8")
        os.replace(part, self.stamp)
