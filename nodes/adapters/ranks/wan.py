"""One run over a Wan model on ranks, window by window."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....flowcache_core.errors import require
from ....flowcache_core.parallel.asked import WanRun
from ....flowcache_core.parallel.session import Session
from ....flowcache_core.plan.shots import Shots
from ....flowcache_core.plan.staggered import VideoWindow
from ..naming import naming
from ..run.plan_choice import PlanChoice
from ..run.prompt_schedule import cuts
from ..run.request import Request
from ..wan.sampling import WanSampling, check
from .choice import NAME, Devices
from .model_file import frame_rate_of, model_file
from .prompts import guidance_of, prompts_of_window
from .run import check_engines, not_compiled, note_of, ranks, run_window, stay_unloaded


class WanRanksSampling(WanSampling):
    """Everything is checked and planned as for a run here; what is computed is computed on ranks."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        assert self.settings.ranks is not None
        patcher, self.ranks_choice, self.devices = self.guider.model_patcher, self.settings.ranks, Devices.here()
        with naming(NAME):
            self.file, self.fps = model_file(patcher), frame_rate_of(patcher)
            self.guidance = guidance_of(self.guider)
            require(self.inpaint is None, "noise mask", "a mask inside frames", "one of whole frames at the start")
            model = self.file.shareable(2 if self.guidance > 1 else 1)
            self.shape = self.ranks_choice.shape(model, self.devices)
        check_engines(self.engines, self.schedule.sigmas, self.shape)
        self.shots = self.choice.released.shots(cuts(self.guider.conds)) if self.choice.released else Shots()
        self.window_runs = [self.run_of(part) for part in self.windows]
        self.progress.notes += (note_of(self.shape, self.devices), *not_compiled(self.options))

    def run_of(self, part: VideoWindow) -> WanRun:
        first = part.first_frame // self.choice.chunk_frames
        engine = self.engines[self.windows.index(part)]
        later = tuple(start - first for start in self.shots.starts if start > first)
        with naming(NAME):
            moved = len(later) == len(self.shots.starts) or not self.shots.offset
            require(moved, "model", self.choice.released and self.choice.released.title, "a run of one window")
            prompts = prompts_of_window(self.branches, self.guidance, first, len(engine.plan.chunks))
        return WanRun(prompts, self.guidance, self.fps, Shots(later, self.shots.offset))

    def run(self) -> Tensor:
        self.output = self.x.clone()
        try:
            with ranks(self.file, self.shape, self.ranks_choice, self.devices) as session:
                for number, part in enumerate(self.windows):
                    frames = slice(part.first_frame, part.end_frame)
                    self.output[:, :, frames] = self.window_on(session, number, part)
        finally:
            self.progress.close()
        return self.output

    def window_on(self, session: Session, number: int, part: VideoWindow) -> Tensor:
        frames, engine = slice(part.first_frame, part.end_frame), self.engines[number]
        clean = self.progress.clean[:, :, frames]
        self.progress.begin(part.first_frame, self.recorder)
        prefix = clean[:, :, : part.prefix_frames].clone() if part.prefix_frames else None
        seed = self.seed_of(number)
        try:
            run, x = self.window_runs[number], self.x[:, :, frames]
            return run_window(session, run, engine, x, prefix, seed, clean, self.progress)
        finally:
            self.keep(self.recorder)


def reserve(guider: Any, choice: PlanChoice, latent_image: Tensor, sigmas: Tensor) -> None:
    """Before the host prepares sampling: refuse what cannot be sampled; it need not load the model."""
    check(guider.model_patcher.model, latent_image, guider.model_options, choice.released)
    with naming(NAME):
        model_file(guider.model_patcher)
    stay_unloaded(guider)
