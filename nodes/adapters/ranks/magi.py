"""One run over a MAGI-1 model on ranks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ....flowcache_core.parallel.asked import MagiRun
from ....flowcache_core.report.record import Recorder
from ..magi.sampling import MagiSampling, check
from ..naming import naming
from ..run.plan_choice import PlanChoice
from ..run.request import Request
from .choice import NAME, Devices
from .model_file import model_file
from .run import check_engines, note_of, ranks, run_window, stay_unloaded


class MagiRanksSampling(MagiSampling):
    """Everything is checked and planned as for a run here; what is computed is computed on ranks."""

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        assert self.settings.ranks is not None
        self.ranks_choice, self.devices = self.settings.ranks, Devices.here()
        with naming(NAME):
            self.file = model_file(self.guider.model_patcher)
            self.shape = self.ranks_choice.shape(self.file.shareable(self.denoiser.branches), self.devices)
        check_engines([self.engine], self.engine.schedule.sigmas, self.shape)
        own = self.denoiser
        self.asked = MagiRun(
            dict(own.captions), own.guidance, own.step_times, own.nearly_clean, own.ranges, own.clean_range
        )
        self.progress.notes += (note_of(self.shape, self.devices),)

    def run(self) -> Tensor:
        recorder = Recorder.of(self.engine)
        self.progress.begin(0, recorder)
        try:
            with ranks(self.file, self.shape, self.ranks_choice, self.devices) as session:
                clean = self.progress.clean
                return run_window(
                    session, self.asked, self.engine, self.x, self.prefix, self.seed, clean, self.progress
                )
        finally:
            self.progress.close()
            self.keep(recorder)


def reserve(guider: Any, choice: PlanChoice, latent_image: Tensor, sigmas: Tensor) -> None:
    """Before the host prepares sampling: refuse what cannot be sampled; it need not load the model."""
    check(guider, guider.model_patcher.model, choice, latent_image, guider.model_options)
    with naming(NAME):
        model_file(guider.model_patcher)
    stay_unloaded(guider)
