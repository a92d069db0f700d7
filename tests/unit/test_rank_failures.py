"""What goes wrong on one rank ends the run on all, with one clear error, within the timeout, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_ranks import HERE, started

from flowcache_core.errors import SettingError
from flowcache_core.parallel import mesh as mesh_module
from flowcache_core.parallel.alike import digest
from flowcache_core.parallel.errors import RankError
from flowcache_core.parallel.mesh import backend_for, joined
from flowcache_core.parallel.shape import MeshShape

TIMEOUT = 20.0  # two processes must have started within it, on a busy machine too
ROOM = 60.0  # seconds for a busy machine to start two processes and end them


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def fails(what: str, folder: Path, timeout: float = TIMEOUT) -> tuple[str, float]:
    """The error, and how long it took; nothing is left running, and the port is free."""
    begun = time.monotonic()
    with pytest.raises(RankError) as error, started(what, "2x1", folder, timeout) as ranks:
        pids, port = [process.pid for process in ranks.processes], ranks.store.port
        ranks.wait()
    assert not any(alive(pid) for pid in pids)
    listening = (
        subprocess.run(["ss", "-ltn"], capture_output=True, text=True).stdout if Path("/usr/bin/ss").exists() else ""
    )
    assert f":{port} " not in listening
    assert "\n" not in str(error.value)
    return str(error.value), time.monotonic() - begun


@pytest.mark.parametrize("what", ["settings", "weights", "noise"])
def test_ranks_that_are_not_alike(what, tmp_path):
    said, _ = fails(what, tmp_path, 60.0)
    name = {"weights": "model"}.get(what, what)
    assert f"other {name} on rank 1 than on rank 0" in said


@pytest.mark.parametrize(
    "what, said",
    [
        ("dies", "rank 1 ended (SIGKILL)"),
        ("fails", "rank 1: ZeroDivisionError: a fault on this rank"),
        ("hangs", "rank 1 did not answer within 20 s"),
        ("stops", "rank 1 did not answer within 20 s"),
    ],
)
def test_a_rank_that_fails_ends_them_all(what, said, tmp_path):
    error, seconds = fails(what, tmp_path, TIMEOUT if what in ("hangs", "stops") else 60.0)
    assert said in error
    assert seconds < TIMEOUT + ROOM


def test_ranks_end_with_their_starter(tmp_path):
    """Killed, so that it can do nothing about it."""
    script = f"""
import sys
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parents[1])!r}]
from pathlib import Path
from test_ranks import started
with started("hangs", "2x1", Path({str(tmp_path)!r}), 600.0) as ranks:
    ranks.wait()
"""
    starter = subprocess.Popen([sys.executable, "-c", script])
    pids = [tmp_path / f"pid{rank}" for rank in range(2)]
    deadline = time.monotonic() + ROOM
    while not all(path.exists() and path.read_text() for path in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    found = [int(path.read_text()) for path in pids]
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    deadline = time.monotonic() + ROOM
    while any(map(running, found)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(running, found))


def running(pid: int) -> bool:
    """Whether it runs still; one that has ended and that nobody has asked after does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_one_that_comes_alone_waits_no_longer_than_it_may(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RankError, match="did not answer within 1 s"), joined(MeshShape(2, 1), timeout=1.0):
        pass


def test_more_ranks_than_the_mesh_has(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SettingError, match="3 started"), joined(MeshShape(2, 1)):
        pass


def test_a_missing_backend(monkeypatch):
    monkeypatch.setattr(mesh_module.dist, "is_nccl_available", lambda: False)
    with pytest.raises(SettingError, match="no nccl"):
        backend_for(torch.device("cuda"))
    with pytest.raises(SettingError, match="no a backend for|backend for mps"):
        backend_for(torch.device("mps"))
    monkeypatch.setattr(mesh_module.dist, "is_gloo_available", lambda: False)
    with pytest.raises(SettingError, match="no gloo"):
        backend_for(torch.device("cpu"))


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True])
def test_a_timeout_that_is_none(timeout):
    with pytest.raises(SettingError, match="rank timeout"), joined(MeshShape(), timeout=timeout):
        pass


def test_alone_is_no_process_group():
    with joined(MeshShape()) as mesh:
        assert mesh.cfg is None and mesh.heads is None
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    "one, other",
    [
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16)),
        (torch.zeros(3), torch.tensor([0.0, 1e-45, 0.0])),
        ({"a": 1}, {"a": 2}),
        ([1, 2], [[1], 2]),
        (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
        (MeshShape(1, 2), MeshShape(2, 1)),
        (frozenset({1}), frozenset({2})),
    ],
)
def test_digests_differ(one, other):
    assert digest(one) == digest(one)
    assert digest(one) != digest(other)
