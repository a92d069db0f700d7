"""The one OUTER_SAMPLE wrapper of a MODEL with FlowCache settings: what happens before and after all sampling."""

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
    from ..host_ar.attach import attach, is_host_ar, warn_unused
    from ..wan.sampling import ChunkSampler
    from .settings import settings_of

    guider = executor.class_obj
    slot, ours = settings_of(guider.model_options).slot, isinstance(sampler, ChunkSampler)
    slot.begin(autoregressive=ours or is_host_ar(sampler))
    if ours:
        sampler.reserve(guider, latent_image, sigmas)
    elif is_host_ar(sampler):
        attach(guider, sampler, latent_image, sigmas)
    else:
        warn_unused(guider.model_options)
    output = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    slot.end(output)
    return output
