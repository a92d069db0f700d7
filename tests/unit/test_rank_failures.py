"""What goes wrong on one rank ends the run on all, with one clear error, within the timeout, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from rank_groups import HERE, alive, listens, running, started

from flowcache_core.errors import SettingError
from flowcache_core.parallel import mesh as mesh_module
from flowcache_core.parallel.alike import digest
from flowcache_core.parallel.errors import RankError
from flowcache_core.parallel.mesh import backend_for, joined
from flowcache_core.parallel.shape import MeshShape

TIMEOUT = 10.0
PATIENCE = 5.0  # seconds of a starter whose ranks do something for 9
ROOM = 120.0  # seconds for a busy machine to start two processes, or to end them
FAULTS = {
    "dies": (60.0, "rank 1 ended (SIGKILL)"),
    "fails": (60.0, "rank 1: ZeroDivisionError: a fault on this rank"),
    "hangs": (TIMEOUT, "rank 1 did not answer within 10 s"),
    "stops": (TIMEOUT, "rank 1 did not answer within 10 s"),
    "all stop": (TIMEOUT, "ranks 0, 1 did not answer within 10 s"),
    "other version": (60.0, "ranks: got 'other version of FlowCache or torch on rank 1 than on rank 0'"),
    "none run": (TIMEOUT, "ranks 0, 1 did not answer within 10 s"),
}


def fails(what: str, folder: Path) -> tuple[str, float]:
    """The error, and seconds since the fault; nothing is left running, and the port is free."""
    with pytest.raises(RankError) as error, started(what, "2x1", folder, FAULTS[what][0]) as ranks:
        pids, port = [process.pid for process in ranks.processes], ranks.store.port
        ranks.wait()
    seconds = time.time() - float((folder / "at").read_text())
    assert not any(alive(pid) for pid in pids) and not listens(port)
    return str(error.value), seconds


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> dict[str, tuple[str, float]]:
    """All faults at the same time, each on ranks of its own: most of it is waiting."""
    folders = [tmp_path_factory.mktemp("fault") for _ in FAULTS]
    with ThreadPoolExecutor(len(FAULTS)) as pool:
        return dict(zip(FAULTS, pool.map(fails, FAULTS, folders), strict=True))


@pytest.mark.parametrize("what", FAULTS)
def test_a_rank_that_fails_ends_them_all(ends, what):
    error, seconds = ends[what]
    timeout, said = FAULTS[what]
    assert said in error and "\n" not in error
    assert seconds < timeout + ROOM


def starter_of(what: str, folder: Path, patience: float) -> tuple[subprocess.Popen[str], int, list[int]]:
    """A process that has started ranks, their port and their numbers, when they do ``what``. ``folder``/temp is where
    it keeps what is kept for a while."""
    script = f"""
import sys
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parents[1])!r}]
from pathlib import Path
from rank_groups import started
ranks = started({what!r}, "2x1", Path({str(folder)!r}), 600.0)
ranks.timeout = {patience}
with ranks:
    print(ranks.store.port, flush=True)
    ranks.wait()
"""
    temp = folder / "temp"
    temp.mkdir()
    env = os.environ | {"TMPDIR": str(temp)}
    starter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env)
    port = int(starter.stdout.readline())
    deadline = time.monotonic() + ROOM
    while not (folder / "at").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    return starter, port, [int((folder / f"pid{rank}").read_text()) for rank in range(2)]


def patient(what: str, folder: Path) -> bool:
    ranks = started(what, "2x1", folder)
    ranks.timeout = PATIENCE
    with ranks:
        ranks.wait()
    return True


def held_up(folder: Path) -> bool:
    """The starter and its ranks, as when a machine sleeps."""
    starter, _, found = starter_of("count", folder, PATIENCE)
    every = [starter.pid, *found]
    for number, wait in ((signal.SIGSTOP, PATIENCE + 3), (signal.SIGCONT, 0)):
        for pid in every:
            os.kill(pid, number)
        time.sleep(wait)
    return starter.wait(ROOM) == 0


def test_who_is_busy_or_held_up_for_longer_than_the_timeout_is_left_alone(tmp_path_factory):
    """All at the same time: most of it is waiting."""
    folders = [tmp_path_factory.mktemp("busy") for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(patient, what, at) for what, at in zip(("count", "multiply"), folders[:2], strict=True)]
        found.append(pool.submit(held_up, folders[2]))
        assert all(one.result() for one in found)


def test_ranks_end_with_their_starter(tmp_path):
    """Killed, so that it can do nothing about it."""
    starter, port, found = starter_of("hangs", tmp_path, 600.0)
    starter.kill()
    starter.wait()
    deadline = time.monotonic() + ROOM
    while any(map(running, found)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(running, found)) and not listens(port)
    assert not list((tmp_path / "temp").iterdir())


def test_a_port_that_is_closed_before_the_ranks_meet(tmp_path):
    with pytest.raises(RankError, match="did not answer|lost one another|ended") as error:
        with started("hangs", "2x1", tmp_path, TIMEOUT) as ranks:
            port, ranks.store = ranks.store.port, None
            pids = [process.pid for process in ranks.processes]
            ranks.wait()
    assert not any(alive(pid) for pid in pids) and not listens(port)
    assert "\n" not in str(error.value)


def test_one_that_comes_alone_waits_no_longer_than_it_may(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RankError, match="did not answer within 1 s"), joined(MeshShape(2, 1), timeout=1.0):
        pass


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"RANK": "abc"}, "RANK: got 'abc', accepted: a whole number below WORLD_SIZE"),
        ({"RANK": "2"}, "RANK: got '2'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE: got '0'"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR: got 'nothing'"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT: got '99999'"),
        ({"MASTER_PORT": None}, "MASTER_PORT: got 'nothing'"),
    ],
)
def test_variables_of_a_starter_that_say_nothing(changed, said, monkeypatch):
    for name, value in (
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"} | changed
    ).items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(SettingError) as error, joined(MeshShape(2, 1)):
        pass
    assert said in str(error.value)


def test_a_job_of_one_process_is_no_rank(monkeypatch):
    """As platforms set them, without anybody to meet."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined(MeshShape()) as mesh:
        assert mesh.shape.size == 1 and not torch.distributed.is_initialized()


def test_nowhere_to_keep_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(RankError, match="ranks could not be started: .*gone"), started("dies", "2x1", tmp_path):
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


@pytest.mark.parametrize(
    "device, carries", [("cpu", "cpu:gloo"), ("cuda", "cpu:gloo,cuda:nccl"), ("cuda:1", "cpu:gloo,cuda:nccl")]
)
def test_the_device_decides_what_carries(monkeypatch, device, carries):
    """Decisions go over the CPU always. That NCCL is there is pretended here; tests/cuda runs it."""
    for name in ("is_nccl_available", "is_gloo_available"):
        monkeypatch.setattr(mesh_module.dist, name, lambda: True)
    assert backend_for(torch.device(device)) == carries


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
