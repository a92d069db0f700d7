"""A model on ranks of this machine, seen from the process that started them."""

from __future__ import annotations

import queue
import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .asked import Begin, Finished, Ready, Told, Window
from .launch import POLL, Ranks
from .message import LENGTH, read, to_bytes
from .serve import command


@dataclass
class Session:
    """Use as a context manager: ranks hold the model from its beginning to its end, and none outlives it.

    meanwhile: called again and again while this process waits; what it raises ends the ranks.
    """

    begin: Begin
    meanwhile: Callable[[], None] = lambda: None
    ranks: Ranks = field(init=False)
    answers: queue.Queue[Any] = field(default_factory=queue.Queue, init=False)

    def __enter__(self) -> Session:
        self.ranks = Ranks(command(), self.begin.shape.size, self.begin.timeout, answers=True)
        self.ranks.__enter__()
        try:
            threading.Thread(target=self.listen, daemon=True, name="flowcache-answers").start()
            self.ask(self.begin)
            self.answer(Ready)
        except BaseException:
            self.ranks.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.ranks.end()

    def run(self, window: Window, told: Callable[[Told], None]) -> Tensor:
        """The window's latents, on the CPU. RankError naming the rank that failed, died or hung."""
        self.ask(window)
        while True:
            found = self.answer(Told, Finished)
            if isinstance(found, Finished):
                return found.latents
            told(found)

    def ask(self, value: object) -> None:
        """The same message to every rank. One that does not read holds up its own thread only."""
        data = to_bytes(value)

        def send(process: subprocess.Popen[bytes]) -> None:
            assert process.stdin is not None
            with suppress(OSError, ValueError):  # it has ended, which is noticed where its answer is waited for
                process.stdin.write(len(data).to_bytes(LENGTH, "little") + data)
                process.stdin.flush()

        for process in self.ranks.processes:
            threading.Thread(target=send, args=(process,), daemon=True, name="flowcache-ask").start()

    def listen(self) -> None:
        stream = self.ranks.processes[0].stdout
        assert stream is not None
        try:
            while True:
                self.answers.put(read(stream))  # type: ignore[arg-type]
        except (EOFError, OSError, ValueError):
            return  # it has ended
        except Exception as error:
            self.answers.put(error)

    def answer(self, *kinds: type[Any]) -> Any:
        while True:
            self.meanwhile()
            with suppress(queue.Empty):
                found = self.answers.get(timeout=POLL)
                if isinstance(found, Exception):
                    raise found
                assert isinstance(found, kinds)
                return found
            ended = any(process.poll() is not None for process in self.ranks.processes)
            if (ended or self.ranks.silent()) and self.answers.empty():
                self.ranks.require_well(ended=False)
