"""The one OUTER_SAMPLE wrapper of a MODEL with FlowCache settings: what happens before the host loads the model."""

from __future__ import annotations

from typing import Any

from comfy.patcher_extension import WrappersMP

KEY = "flowcache"


def install_outer(model: Any) -> None:
    """Put the wrapper on a ModelPatcher; once, however many of our nodes it went through."""
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)


def outer_sample(
    executor: Any, noise: Any, latent_image: Any, sampler: Any, sigmas: Any, *args: Any, **kwargs: Any
) -> Any:
    from .sampler import ChunkSampler

    if isinstance(sampler, ChunkSampler):
        sampler.reserve(executor.class_obj, latent_image, sigmas)
    return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
