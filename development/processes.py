"""Processes that dev.py starts, and what it says on the way."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).absolute().parents[1]
INTERRUPTED = 130


class DevError(Exception):
    """Something the user can put right; printed without a traceback."""


def say(text: str) -> None:
    print(text, flush=True)


def run(command: Sequence[str | Path], cwd: Path | None = None, env: Mapping[str, str] | None = None) -> int:
    """Run in the foreground, by default in this folder; the exit code is 130 after Ctrl-C, 128 + n after signal n."""
    child = subprocess.Popen([str(part) for part in command], cwd=cwd or ROOT, env=env)
    try:
        code = child.wait()
    except KeyboardInterrupt:  # the child has it too: let it finish its own way
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            child.wait(timeout=10)
        return INTERRUPTED
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
    return 128 - code if code < 0 else code


def become(command: Sequence[str | Path]) -> int:
    """Go on as ``command``, in this folder. Where the system has it there is no process between a user and the work,
    so that whatever ends the one, ends the other; Windows gets a child."""
    if os.name == "nt":
        return run(command)
    parts = [str(part) for part in command]
    os.chdir(ROOT)
    sys.stdout.flush()
    os.execv(parts[0], parts)


def succeeds(command: Sequence[str | Path]) -> bool:
    """Whether a quiet probe exits with 0."""
    parts = [str(part) for part in command]
    return subprocess.run(parts, cwd=tempfile.gettempdir(), capture_output=True).returncode == 0
