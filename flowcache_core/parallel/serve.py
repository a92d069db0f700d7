"""A rank that serves its starter: it loads a model once, then runs windows until the starter closes its input.

Messages come over standard input, to every rank the same; the first rank answers over its standard output. Whatever
else writes there goes to standard error.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..denoiser import ChunkInput, ChunkOutput
from ..kv.cache import KVCache
from ..noise import host_noise
from ..report.events import Event, StepTaken
from ..rows import Rows
from .asked import Begin, Finished, Ready, Told, WanRun, Window
from .errors import RankError
from .mesh import Mesh, joined
from .message import read, write
from .rank import as_rank, leave_no_trace
from .run import generate_on_ranks

ROOT = str(Path(__file__).resolve().parents[2])
BOOT = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from flowcache_core.parallel.rank import follow_parent
follow_parent()
from flowcache_core.parallel.serve import main
sys.exit(main())
"""


def command() -> list[str]:
    """What starts one: the package is found wherever this process has it, also by a Python that heeds no variables.

    That its starter has gone is noticed from the first, while torch is still being imported.
    """
    return [sys.executable, "-c", BOOT, ROOT]


@dataclass
class Inbox:
    """Messages of the starter, read beside the run: that its end of our input is closed must be noticed at once."""

    messages: queue.Queue[Any] = field(default_factory=queue.Queue)

    def listen(self) -> None:
        threading.Thread(target=self.read_on, daemon=True, name="flowcache-starter").start()

    def read_on(self) -> None:
        # Unbuffered: a buffer's lock, held by a thread that waits, would make the interpreter's end a crash.
        stream = os.fdopen(0, "rb", buffering=0, closefd=False)
        try:
            while True:
                self.messages.put(read(stream))
        except (EOFError, OSError, ValueError):
            leave_no_trace()
        except Exception as error:
            self.messages.put(error)

    def next(self, kind: type[Any]) -> Any:
        found = self.messages.get()
        if isinstance(found, Exception):
            raise found
        if not isinstance(found, kind):
            raise RankError(f"asked for a {type(found).__name__} instead of a {kind.__name__}")
        return found


@dataclass
class Watched:
    """A denoiser whose clean predictions are seen as they are made; everything else is its own."""

    denoiser: Any
    newest: dict[int, Tensor] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)

    def clean(self, item: ChunkInput, x: Tensor, velocity: Tensor) -> Tensor:
        """From the velocities of all branches ``[branches, B, ...]``."""
        return x - item.sigma * self.denoiser.guide(velocity, item)

    def seen(self, item: ChunkInput, x: Tensor, velocity: Tensor, rows: Rows | None = None) -> Tensor:
        """What the engine is given of these velocities."""
        clean = self.clean(item, x, velocity)
        before = self.newest.get(item.chunk.index)
        if rows is not None and before is not None:
            clean = torch.where(rows.pixels(clean), clean, before)
        self.newest[item.chunk.index] = clean
        return velocity

    def compute(
        self, item: ChunkInput, cache: KVCache, *, keep_residual: bool = False, rows: Rows | None = None
    ) -> ChunkOutput:
        output: ChunkOutput = self.denoiser.compute(item, cache, keep_residual=keep_residual, rows=rows)
        return replace(output, velocity=self.seen(item, item.latents, output.velocity, output.rows))

    def from_residual(self, item: ChunkInput, residual: Tensor) -> Tensor:
        return self.seen(item, item.latents, self.denoiser.from_residual(item, residual))

    def window(self, latents: Tensor, timesteps: Sequence[float], items: Sequence[ChunkInput]) -> Tensor:
        velocity: Tensor = self.denoiser.window(latents, timesteps, items)
        every = [slice(item.chunk.first_frame, item.chunk.end_frame) for item in items]
        parts = [self.seen(item, latents[:, :, at], velocity[:, :, :, at]) for item, at in zip(items, every)]
        whole = parts[0].new_zeros(parts[0].shape[0], *latents.shape)
        for part, at in zip(parts, every, strict=True):
            whole[:, :, :, at] = part
        return whole


@dataclass
class Guided(Watched):
    """As a host's guider asks: branches are combined as clean predictions, and the engine gets one velocity. In the
    same order of operations, so that a run on ranks is the host's to rounding over many steps."""

    def guide(self, velocity: Tensor, item: ChunkInput) -> Tensor:
        return velocity[0]

    def clean(self, item: ChunkInput, x: Tensor, velocity: Tensor) -> Tensor:
        cond, *uncond = (x - one * item.sigma for one in velocity)
        return uncond[0] + (cond - uncond[0]) * self.denoiser.guidance if uncond else cond

    def seen(self, item: ChunkInput, x: Tensor, velocity: Tensor, rows: Rows | None = None) -> Tensor:
        clean = self.clean(item, x, velocity)
        super().seen(item, x, velocity, rows)
        return ((x - clean) / item.sigma).unsqueeze(0)


def run_window(mesh: Mesh, transformer: Any, asked: Window, answer: Any) -> None:
    """answer: takes what the first rank has to say; does nothing on the others."""
    first = mesh.rank == 0
    denoiser = asked.run.denoiser(transformer, mesh.device)
    watched: list[Watched] = []

    def around(mine: Any) -> Any:
        watched.append(Guided(mine) if isinstance(asked.run, WanRun) else Watched(mine))
        return watched[0]

    def observe(event: Event) -> None:
        if first:
            clean = watched[0].newest.get(event.chunk) if isinstance(event, StepTaken) else None
            answer(Told(event, clean))

    before = mesh.traffic.total
    latents = generate_on_ranks(
        mesh,
        denoiser,
        asked.settings,
        asked.noise.to(mesh.device),
        prefix=None if asked.prefix is None else asked.prefix.to(mesh.device),
        noise_source=host_noise(asked.seed, asked.settings.plan.prefix_chunks),
        observe=observe,
        around=around,
    )
    if first:
        answer(Finished(latents, mesh.traffic.total - before))


def serve(inbox: Inbox, answers: BinaryIO) -> int:
    """Never returns while the starter is there."""
    begin: Begin = inbox.next(Begin)
    model = begin.model.load()
    with joined(begin.shape, begin.device, begin.timeout) as mesh:
        model = model.to(mesh.device)
        answer = (lambda value: write(answers, value)) if mesh.rank == 0 else (lambda value: None)
        answer(Ready())
        while True:
            run_window(mesh, model, inbox.next(Window), answer)


def main() -> int:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    inbox = Inbox()
    return as_rank(lambda: serve(inbox, answers), inbox.listen)
