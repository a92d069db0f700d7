"""Core events on the host's progress bar and preview."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
from torch import Tensor
from tqdm.auto import tqdm

from ...flowcache_core.report.events import ChunkFinished, Event, RunStarted, StepTaken
from ...flowcache_core.report.record import Recorder

HostCallback = Callable[[int, Tensor, Tensor, int], None]
"""``callback(step, x0, x, total_steps)`` as the host's sampler nodes make it."""


@dataclass
class Progress:
    """Observer of a run of one or more windows; every chunk step counts, computed or reused.

    clean: the clean prediction of the whole video ``[B, C, F, H, W]``, filled by the denoiser; what previews and
    ``denoised_output`` show.
    """

    total: int
    clean: Tensor
    noisy: Tensor
    callback: HostCallback | None
    ends_clean: bool
    disable: bool
    done: int = 0
    offset: int = field(default=0, init=False)
    recorder: Recorder | None = field(default=None, init=False)
    noted: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.bar = tqdm(total=self.total, disable=self.disable, desc="chunk steps")

    def begin(self, first_frame: int, recorder: Recorder) -> None:
        """The next window, which starts at this frame of the video; its events go to ``recorder`` first."""
        self.offset, self.recorder = first_frame, recorder

    def __call__(self, event: Event) -> None:
        if self.recorder is not None:
            self.recorder(event)
        if isinstance(event, RunStarted):
            for note in event.notes:
                if note not in self.noted:
                    logging.warning("FlowCache: %s", note)
            self.noted.update(event.notes)
        elif isinstance(event, ChunkFinished) and self.ends_clean:
            first = self.offset + event.first_frame
            self.clean[:, :, first : first + event.latents.shape[2]] = event.latents
        elif isinstance(event, StepTaken):
            # Reused steps call no operation of the host that would notice an interrupt.
            comfy.model_management.throw_exception_if_processing_interrupted()
            self.done += 1
            self.bar.update()
            if self.callback is not None:
                self.callback(self.done - 1, self.clean, self.noisy, self.total)

    def close(self) -> None:
        self.bar.close()


def show_text(node_id: str | None, text: str) -> None:
    """Write ``text`` on a node; nothing where no server runs."""
    server: Any = sys.modules.get("server")
    instance = getattr(getattr(server, "PromptServer", None), "instance", None)
    if instance is not None and node_id is not None:
        instance.send_progress_text(text, node_id)
