"""The SAMPLER that the sampler node makes: it picks the family's run."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from torch import Tensor

from ..before.tell import at_start
from ..magi import sampling as magi
from ..magi.sampling import MagiSampling, is_magi
from ..naming import naming
from ..ranks import magi as magi_ranks
from ..ranks import wan as wan_ranks
from ..shown.live_preview import Display
from ..wan import sampling as wan
from ..wan.sampling import WanSampling
from .plan_choice import PlanChoice
from .prefix import given_latents
from .request import Request, Sampling
from .settings import FlowCacheSettings, settings_of

CALLBACK = "flowcache_callback"


class ChunkSampler(comfy.samplers.KSAMPLER):
    """A host SAMPLER without state of its own: everything a run needs is made in :meth:`run`."""

    def __init__(
        self,
        node: str,
        choice: PlanChoice,
        latent: Any = None,
        prefix_frames: int = 0,
        display: Display | None = None,
    ) -> None:
        """node: display name for errors. latent: a LATENT whose last ``prefix_frames`` (0: all) begin the video."""
        super().__init__(self.run)
        self.node, self.choice, self.display = node, choice, display or Display()
        self.given = None if latent is None else given_latents(latent, prefix_frames)

    def reserve(self, guider: Any, latent_image: Tensor, sigmas: Tensor) -> None:
        """Before the model is loaded: refuse what cannot be sampled and tell the host about the K/V."""
        on_ranks = settings_of(guider.model_options).ranks is not None
        if is_magi(guider.model_patcher.model):
            family: Any = magi_ranks if on_ranks else magi
        else:
            family = wan_ranks if on_ranks else wan
        with naming(self.node):
            family.reserve(guider, self.choice, latent_image, sigmas)

    def sample(self, model_wrap, sigmas, extra_args, callback, *args, **kwargs):  # type: ignore[no-untyped-def]
        """As the host calls it. Its callback for sampler functions counts sigmas only, so ours takes another way."""
        return super().sample(model_wrap, sigmas, {**extra_args, CALLBACK: callback}, None, *args, **kwargs)

    def run(
        self, model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, disable: bool | None
    ) -> Tensor:
        """The sampler function. x: ``[B, C, F, H, W]`` at the first noise level; returns it at the last one."""
        if len(sigmas) < 2:
            return x  # no step to take, as after a split of the sigmas at the end: what came in goes out
        shown = extra_args.get(CALLBACK)
        request = Request(self.choice, self.given, self.display, model, x, sigmas, extra_args, bool(disable), shown)
        family = sampling_of(model.inner_model.inner_model, settings_of(extra_args["model_options"]))
        with naming(self.node):
            sampling = family(request)
            patcher, forwards = sampling.guider.model_patcher, sampling.forwards_per_step
            at_start(patcher, lambda: sampling.runs, x.shape, forwards, sampling.settings)
            return sampling.run()


def sampling_of(model: Any, settings: FlowCacheSettings) -> type[Sampling]:
    """The run of a model's family, here or on ranks."""
    if is_magi(model):
        return MagiSampling if settings.ranks is None else magi_ranks.MagiRanksSampling
    return WanSampling if settings.ranks is None else wan_ranks.WanRanksSampling
