"""Tasks on Ray (https://www.ray.io, extra ``distributed``): a cluster of this machine, or one that runs already."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Found, SettingError, one_line, require, shown
from .task import Task, perform, sources

if TYPE_CHECKING:
    from .workers import Workers

ANSWER = 10.0  # seconds for a cluster to answer
RETRIES = 5  # times that a task is given to another worker when its own has died
AUTO = "auto"
TOKEN = "; where its head has a token, RAY_AUTH_MODE=token and that token in ~/.ray/auth_token"
SETTINGS = b"\4"  # the frame's kind that either side of HTTP/2 begins with (RFC 9113), which Ray's gRPC speaks
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + SETTINGS + b"\0" + b"\0\0\0\0"


def require_answer(address: str) -> None:
    """SettingError unless a server of Ray's kind answers there: Ray itself would ask others for minutes. ``auto`` is
    asked by Ray."""
    if address == AUTO:
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    number = port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536
    require(bool(host) and number, "ray", address, "HOST:PORT of a cluster's head, ray://HOST:PORT, or auto")
    accepted = "the address of a cluster that runs: ray start --head prints it"
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER) as connection:
            connection.sendall(HELLO)
            said = connection.recv(9)
    except OSError as error:
        found = Found(f"{address}, where nothing answers ({one_line(str(error), 80)})")
        raise SettingError("ray", found, accepted) from error
    encrypted = os.environ.get("RAY_USE_TLS", "0") not in ("", "0")
    require(encrypted or said[3:4] == SETTINGS, "ray", Found(f"{address}, where something else answers"), accepted)


def asked(workers: Workers) -> tuple[str, str]:
    return ("workers", str(workers.count)) if workers.address is None else ("ray", workers.address)


@contextmanager
def cluster(workers: Workers) -> Iterator[Any]:
    """Ray, connected; a cluster of this machine is started, and ended with everything it started."""
    try:
        import ray
    except ImportError as error:
        field, value = asked(workers)
        raise SettingError(
            field, Found(f"{value}; {one_line(str(error), 160)}"), "a Ray that can be imported"
        ) from error
    if ray.is_initialized():  # of a caller, who ends it
        yield ray
        return
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    # Workers compute with one thread each; they are as many as asked for.
    environment = {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    given: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "runtime_env": environment}
    try:
        if workers.address is None:
            ray.init(num_cpus=workers.count, include_dashboard=False, **given)
        else:
            ray.init(address=workers.address, **given)
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        field, value = asked(workers)
        found = Found(f"{value}: {one_line(str(error), 160)}")
        raise SettingError(field, found, f"a cluster that answers{'' if workers.address is None else TOKEN}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def landed_on_ray(tasks: Sequence[Task], workers: Workers) -> Iterator[tuple[Task, Any]]:
    """Every task with its result as it comes. A worker that dies loses nothing but time: its task runs again."""
    if not tasks:
        return
    with cluster(workers) as ray:
        remote = ray.remote(max_retries=RETRIES, num_cpus=1)(perform_alike)
        pending = {remote.remote(task.work, dict(task.arguments), sources()): task for task in tasks}
        while pending:
            (done, *_), _ = ray.wait(list(pending), num_returns=1)
            task = pending.pop(done)
            try:
                value, refused = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                said = one_line(f"{type(error.cause).__name__}: {error.cause}", 400)
                raise RuntimeError(f"task {task.name}: {said}") from error
            except ray.exceptions.RayError as error:
                found = Found(f"task {task.name}: {type(error).__name__}, {RETRIES} times again")
                raise SettingError("workers", found, "workers that stay alive: is there memory for so many?") from error
            if refused is not None:
                field, found, accepted = refused
                raise SettingError(field, found, accepted)
            yield task, value


def perform_alike(work: str, arguments: Mapping[str, Any], wanted: str) -> tuple[Any, tuple[str, Any, str] | None]:
    """On a worker: the task's result, or the parts of its SettingError. Refused where the worker has other sources
    than the sweep was asked for with."""
    try:
        found = Found(f"other sources on {socket.gethostname()}")
        require(sources() == wanted, "workers", found, "the same version of this repository on every machine")
        return perform(work, arguments), None
    except SettingError as error:
        plain = error.value is None or isinstance(error.value, str | int | float)
        return None, (error.field, error.value if plain else shown(error.value), error.accepted)
