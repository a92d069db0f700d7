"""Core events on the host's progress bar and preview."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import comfy.model_management
from torch import Tensor
from tqdm.auto import tqdm

from ....flowcache_core.report.events import ChunkFinished, Event, NotFinite, RunStarted, StepTaken
from ....flowcache_core.report.record import Recorder
from .live_map import LiveMap
from .live_preview import LivePreview

HostCallback = Callable[[int, Tensor, Tensor, int], None]
"""``callback(step, x0, x, total_steps)`` as the host's sampler nodes make it."""


@dataclass
class Progress:
    """Observer of a run of one or more windows; every chunk step counts, computed or reused.

    clean: the clean prediction of the whole video ``[B, C, F, H, W]``, filled by the denoiser; what latent previews and
    ``denoised_output`` show. live: the map on the node. preview: gets the frames of chunks as they finish, in order,
    and the given ones before them. notes: sentences about the graph, for the log and the report.
    """

    total: int
    clean: Tensor
    noisy: Tensor
    callback: HostCallback | None
    ends_clean: bool
    disable: bool
    live: LiveMap
    preview: LivePreview | None = None
    notes: tuple[str, ...] = ()
    done: int = 0
    shown_frames: int = 0
    offset: int = field(default=0, init=False)
    recorder: Recorder | None = field(default=None, init=False)
    broken: NotFinite | None = field(default=None, init=False)
    noted: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.bar = tqdm(total=self.total, disable=self.disable, desc="chunk steps")

    def begin(self, first_frame: int, recorder: Recorder) -> None:
        """The next window, which starts at this frame of the video; its events go to ``recorder`` first."""
        self.offset, self.recorder = first_frame, recorder

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            event = replace(event, notes=(*event.notes, *self.notes))
        if self.recorder is not None:
            self.recorder(event)
        if isinstance(event, RunStarted):
            for note in event.notes:
                if note not in self.noted:
                    logging.warning("FlowCache: %s", note)
            self.noted.update(event.notes)
        elif isinstance(event, NotFinite):
            self.warn(event)
        elif isinstance(event, ChunkFinished) and self.ends_clean:
            self.finish(event)
        elif isinstance(event, StepTaken):
            # Reused steps call no operation of the host that would notice an interrupt.
            comfy.model_management.throw_exception_if_processing_interrupted()
            self.done += 1
            self.bar.update()
            if self.callback is not None:
                self.callback(self.done - 1, self.clean, self.noisy, self.total)
        self.live(event)  # last, so that what was done above counts as part of the step

    def warn(self, event: NotFinite) -> None:
        """Say from where on the run is worth nothing, once in the log; the map on the node marks the steps."""
        if self.broken is None:
            self.broken = event
            logging.warning("FlowCache: values are not finite from %s on (NaN or infinite)", event.place)

    def finish(self, event: ChunkFinished) -> None:
        first = self.offset + event.first_frame
        end = first + event.latents.shape[2]
        self.clean[:, :, first:end] = event.latents
        if self.preview is not None:
            self.preview.show(self.clean[:, :, self.shown_frames : end])
            self.shown_frames = end

    def close(self) -> None:
        self.bar.close()
        self.live.close()
        if self.preview is not None:
            self.preview.close()
