"""Starts ranks for the tests and asks after processes and ports."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from flowcache_core.parallel.launch import Ranks
from flowcache_core.parallel.shape import mesh_from_text

HERE = Path(__file__).parent


def started(what: str, meshes: str, folder: Path, timeout: float = 120.0, names: str = "") -> Ranks:
    """``rank_worker.py`` on as many ranks as the first of ``meshes`` has; all of them have that many."""
    command = [sys.executable, str(HERE / "rank_worker.py"), what, meshes, str(folder), str(timeout)]
    path = f"{HERE.parents[1]}:{HERE}"
    count = mesh_from_text(meshes.split(",")[0]).size
    return Ranks(command, count, timeout, {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RANK_CASES": names})


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def running(pid: int) -> bool:
    """Whether it runs still; one that has ended and that nobody has asked after does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def listens(port: int) -> bool:
    with socket.socket() as asking:
        asking.settimeout(1.0)
        return asking.connect_ex(("127.0.0.1", port)) == 0
