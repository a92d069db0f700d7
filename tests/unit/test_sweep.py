"""Sweeps: the same results here and on workers, kept as they land, and none lost with a worker that dies."""

from __future__ import annotations

import argparse
import json
import socket
import threading
import time
from pathlib import Path

import pytest

from benchmarks.meaning import merged_rates
from benchmarks.mini_runs import Row
from flowcache_core.errors import SettingError
from flowcache_core.mini.evaluate import main as evaluate
from flowcache_core.sweep import on_ray
from flowcache_core.sweep import workers as workers_module
from flowcache_core.sweep.kept import Kept
from flowcache_core.sweep.task import Task, perform
from flowcache_core.sweep.workers import Workers, add_worker_arguments, landed, swept, workers_of

COUNT = "flowcache_core.sweep.trial:counted"


def options(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_worker_arguments(parser)
    return parser.parse_args(arguments)


def tasks(folder: Path, count: int = 4, **more: object) -> list[Task]:
    return [Task(f"task {n}", COUNT, {"number": n, "folder": str(folder), **more}) for n in range(count)]


def runs(folder: Path, number: int) -> int:
    return len(list(folder.glob(f"{number}-*")))


def test_here(tmp_path):
    assert [(task.name, value) for task, value in landed(tasks(tmp_path), Workers())] == [
        (f"task {n}", {"square": n * n}) for n in range(4)
    ]


def test_a_second_call_goes_on_where_the_first_stopped(tmp_path):
    file, about = tmp_path / "kept.json", {"model": "mini"}
    first = swept(tasks(tmp_path), Workers(), Kept(file, about))
    for _ in range(2):
        next(first)
    first.close()  # stopped while the third would run
    assert len(json.loads(file.read_text())["values"]) == 2
    values = dict((task.name, value) for task, value in swept(tasks(tmp_path), Workers(), Kept(file, about)))
    assert values == {f"task {n}": {"square": n * n} for n in range(4)}
    assert [runs(tmp_path, n) for n in range(4)] == [1, 1, 1, 1]
    list(swept(tasks(tmp_path), Workers(), Kept(file, {"model": "another"})))
    assert [runs(tmp_path, n) for n in range(4)] == [2, 2, 2, 2]


def test_only_our_own_work_is_done():
    for work in ("os:getcwd", "flowcache_core", "subprocess:run", ""):
        with pytest.raises(SettingError, match="work"):
            perform(work, {})


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--workers", "0"], "workers: got 0"),
        (["--workers", "2", "--ray", "auto"], "not both"),
        (["--ray", "somewhere"], "ray: got 'somewhere'"),
        (["--ray", "host:port"], "ray: got 'host:port'"),
        (["--ray", "127.0.0.1:1"], "where nothing answers"),
        (["--ray", "no.such.host.invalid:6379"], "where nothing answers"),
    ],
)
def test_bad_input(arguments, said, monkeypatch):
    monkeypatch.setattr(workers_module.importlib.util, "find_spec", lambda name: object())
    begun = time.monotonic()
    with pytest.raises(SettingError) as error:
        workers_of(options(*arguments))
    assert said in str(error.value)
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(
    "answer, said",
    [(b"", "where nothing answers (timed out)"), (b"HTTP/1.1 400 Bad\r\n", "where something else answers")],
)
def test_what_listens_and_is_no_cluster(answer, said, monkeypatch):
    """Ray would ask it for minutes."""
    monkeypatch.setattr(workers_module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(on_ray, "ANSWER", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        met = []

        def serve():
            met.append(listening.accept()[0])
            met[0].sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(SettingError) as error:
            workers_of(options("--ray", f"127.0.0.1:{listening.getsockname()[1]}"))
    assert said in str(error.value) and met


def test_a_cluster_that_runs_is_taken_for_one(two_workers):
    import ray

    address = ray.get_runtime_context().gcs_address
    assert workers_of(options("--ray", address)) == Workers(1, address)


def test_without_ray_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(workers_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match="pip install ray"):
        workers_of(options("--workers", "2"))
    assert workers_of(options("--workers", "1")) == Workers(1)
    assert workers_of(options()) is None


def test_rows_of_single_pairs_add_up():
    rows = [
        Row("x", 0.2, 0.3, psnr, psnr, 0.9, 0.1, share, {"colour": (share, 1)})
        for psnr, share in ((30, 1), (40, 0), (20, 1))
    ]
    merged = Row.merged("x", rows)
    assert merged.psnr == 30 and merged.computed == pytest.approx(0.2) and merged.right == pytest.approx(2 / 3)
    assert merged_rates([{"a": (0.5, 2)}, {"a": (1.0, 6), "b": (0.0, 1)}]) == {"a": (0.875, 8), "b": (0.0, 1)}


def test_an_evaluation_in_tasks_is_the_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    short = ["--samples", "10", "--chunks", "1", "--steps", "3"]
    for name, more in (("whole", []), ("tasks", ["--workers", "1"])):
        evaluate([*short, *more, "--json", str(tmp_path / f"{name}.json")])
    assert json.loads((tmp_path / "whole.json").read_text()) == json.loads((tmp_path / "tasks.json").read_text())
    (kept,) = (tmp_path / "out" / "sweeps").glob("evaluate-*.json")
    assert len(json.loads(kept.read_text())["values"]) == 2
    capsys.readouterr()


# -- on Ray, where it is installed ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_workers():
    pytest.importorskip("ray", reason="workers need Ray: pip install ray")
    with workers_module.ready(Workers(2)):
        yield Workers(2)


def test_workers_do_the_same(tmp_path, two_workers):
    found = {task.name: value for task, value in landed(tasks(tmp_path, 6), two_workers)}
    assert found == {f"task {n}": {"square": n * n} for n in range(6)}
    pids = {path.name.split("-")[1] for path in tmp_path.glob("*-*")}
    assert len(pids) >= 1 and str(workers_module.__name__) not in pids


def test_a_killed_workers_tasks_run_again(tmp_path, two_workers):
    kept = Kept(tmp_path / "kept.json", {})
    dying = tasks(tmp_path, 4, dies=2)
    found = {task.name: value for task, value in swept(dying, two_workers, kept)}
    assert found == {f"task {n}": {"square": n * n} for n in range(4)}
    assert runs(tmp_path, 2) == 2  # it was killed in the middle of the first
    assert kept.values == found


def test_a_tasks_own_error_is_said(tmp_path, two_workers):
    bad = Task("bad", COUNT, {"number": -1, "folder": str(tmp_path)})
    with pytest.raises(SettingError, match="number: got -1"):
        list(landed([bad], two_workers))


def test_nothing_is_left_running(two_workers):
    with socket.socket() as probe:  # a cluster of our own, asked by its address, and one that is not there
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    with pytest.raises(SettingError, match="where nothing answers"):
        workers_of(options("--ray", f"127.0.0.1:{closed}"))
