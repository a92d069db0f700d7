"""Starts ranks on this machine as torchrun does (its environment variables), and sees that none outlives the run.

torchrun itself works as well, and starts ranks on several machines. What is added here: one error instead of every
rank's, a rank that hangs is ended within the timeout, and no rank outlives its starter, however that ends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from ..errors import one_line
from .errors import RankError
from .pulse import Pulses
from .rank import ERRORS, LEFT, LOST, REFUSED

GRACE = 3.0  # seconds that the other ranks get to say what they know, and then to end by themselves
POLL = 0.05


@dataclass
class Ranks:
    """Ranks that have been started, 0 first. Use as a context manager: at its end none is left, and no port.

    answers: whether the standard output of rank 0 is read here.
    """

    command: Sequence[str]
    count: int
    timeout: float
    environment: Mapping[str, str] = field(default_factory=dict)
    answers: bool = False
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list, init=False)
    said: tempfile.TemporaryDirectory[str] | None = field(default=None, init=False)
    pulses: Pulses = field(init=False)
    store: TCPStore | None = field(default=None, init=False)

    def __enter__(self) -> Ranks:
        try:
            self.said = tempfile.TemporaryDirectory(prefix="flowcache-ranks-")
            self.pulses = Pulses(self.said.name, self.count)
            self.store = local_store(self.timeout)
            for rank in range(self.count):
                variables = {**os.environ, **self.variables(rank), **self.environment}
                # Its standard input is how a rank notices that its starter has gone: see rank.py.
                out = subprocess.PIPE if self.answers and rank == 0 else None
                self.processes.append(
                    subprocess.Popen(list(self.command), env=variables, stdin=subprocess.PIPE, stdout=out)
                )
        except BaseException as error:
            self.end()
            if isinstance(error, OSError | RuntimeError):  # no folder, no port, no process to be had
                raise RankError(f"ranks could not be started: {one_line(str(error), 200)}") from error
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def variables(self, rank: int) -> dict[str, str]:
        """What torchrun tells a rank, and where to leave an error."""
        assert self.store is not None and self.said is not None
        found = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.count),
            "LOCAL_WORLD_SIZE": str(self.count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is here, no rank opens one
            ERRORS: self.said.name,
        }
        loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
        if loopback and "GLOO_SOCKET_IFNAME" not in os.environ:
            found["GLOO_SOCKET_IFNAME"] = loopback
        threads = max(1, (os.cpu_count() or 1) // self.count)
        return found | ({} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(threads)})

    def wait(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Until all ranks have ended. RankError when one ends badly, stands still, or hangs while others are done.

        meanwhile: called again and again; what it raises ends the ranks.
        """
        done_since: float | None = None
        while any(process.poll() is None for process in self.processes):
            meanwhile()
            codes = [process.poll() for process in self.processes]
            if any(code not in (None, 0) for code in codes) or self.silent():
                break
            if 0 in codes:
                done_since = done_since or time.monotonic()
                if time.monotonic() - done_since > self.timeout:
                    break
            time.sleep(POLL)
        self.require_well()

    def require_well(self, ended: bool = True) -> None:
        """RankError that names the rank at fault, unless all have ended well. ended: whether they are to have ended."""
        expiry = time.monotonic() + GRACE
        while any(process.poll() is None for process in self.processes) and time.monotonic() < expiry:
            time.sleep(POLL)
        codes = [process.poll() for process in self.processes]
        if ended and all(code == 0 for code in codes):
            return
        # One that says it was left alone ends by itself, if late; and where some stand still, others wait for them.
        silent = self.silent()
        waits = [self.left(rank) or (bool(silent) and rank not in silent) for rank in range(self.count)]
        codes = [LOST if code is None and waits[rank] else code for rank, code in enumerate(codes)]
        raise RankError(fault(codes, [self.error(rank) for rank in range(self.count)], self.timeout))

    def silent(self) -> list[int]:
        """Ranks that run, and give no sign of life."""
        return [rank for rank in self.pulses.silent(self.timeout) if self.processes[rank].poll() is None]

    def left(self, rank: int) -> bool:
        assert self.said is not None
        return (Path(self.said.name) / f"{rank}{LEFT}").exists()

    def error(self, rank: int) -> str:
        assert self.said is not None
        with suppress(OSError):
            return one_line((Path(self.said.name) / str(rank)).read_text(encoding="utf-8"), 600)
        return ""

    def end(self) -> None:
        """No rank is left after this, and no port."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        expiry = time.monotonic() + GRACE
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, expiry - time.monotonic()))
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(OSError, ValueError):
                        stream.close()
        self.store = None
        if self.said is not None:
            self.said.cleanup()
            self.said = None


def fault(codes: Sequence[int | None], errors: Sequence[str], timeout: float) -> str:
    """The sentence about the rank at fault: one that said why, then one that was killed, then one that hangs."""
    for rank, (code, error) in enumerate(zip(codes, errors, strict=True)):
        if error and code not in (0, LOST):
            return error if code == REFUSED else f"rank {rank}: {error}"
    for rank, code in enumerate(codes):
        if code is not None and code not in (0, LOST):
            name = f"exit status {code}"
            if code < 0:
                with suppress(ValueError):
                    name = signal.Signals(-code).name
            return f"rank {rank} ended ({name}); the run has ended on all {len(codes)} ranks"
    hanging = [str(rank) for rank, code in enumerate(codes) if code is None]
    if hanging:
        which = f"rank {hanging[0]}" if len(hanging) == 1 else f"ranks {', '.join(hanging)}"
        return f"{which} did not answer within {timeout:g} s; the run has ended on all {len(codes)} ranks"
    return f"ranks lost one another: no answer within {timeout:g} s"


def local_store(timeout: float) -> TCPStore:
    """The store at which ranks of this machine meet, on a free port that nobody outside it can reach."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        return TCPStore(
            "127.0.0.1",
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout),
            master_listen_fd=os.dup(listening.fileno()),
        )


def run_command(argv: Sequence[str], ranks: int, timeout: float) -> None:
    """``python -m flowcache_core ARGV`` on ``ranks`` ranks of this machine. RankError when it fails on one."""
    # The package is found from where this process has it, wherever it was started.
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "flowcache_core.parallel.rank", *argv]
    with Ranks(command, ranks, timeout, {"PYTHONPATH": path}) as started:
        started.wait()
