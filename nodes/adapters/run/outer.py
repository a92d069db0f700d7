"""Settings put on a MODEL, and its one OUTER_SAMPLE wrapper: what happens before and after all sampling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....flowcache_core.calibrate.measured_heads import MeasureHeads
from ....flowcache_core.errors import SettingError
from ....flowcache_core.kv.settings import KVSettings
from ....flowcache_core.presets.sparse import SparsePreset
from ....flowcache_core.sparse.settings import SparseSettings
from ..before.speed import note_speed
from ..before.tell import at_start
from ..before.wired import host_run
from ..host_ar.attach import attach, is_host_ar, warn_unused
from ..ranks.choice import NAME as RANKS
from ..ranks.choice import RanksChoice
from .records import RecordSlot
from .sampler import ChunkSampler
from .settings import KEY, AutoReuse, FlowCacheSettings, ReuseSettings, refuse_other_caches, settings_of
from .sparse import refuse_other_sparse


def install_outer(model: Any) -> None:
    """Put the wrapper on a ModelPatcher; once, however many of our nodes it went through."""
    model.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, outer_sample)


def outer_sample(
    executor: Any, noise: Any, latent_image: Any, sampler: Any, sigmas: Any, *args: Any, **kwargs: Any
) -> Any:
    guider = executor.class_obj
    settings, ours = settings_of(guider.model_options), isinstance(sampler, ChunkSampler)
    slot = settings.slot
    slot.begin(autoregressive=ours or is_host_ar(sampler), noise=noise if isinstance(noise, Tensor) else None)
    if ours:
        sampler.reserve(guider, latent_image, sigmas)
    elif is_host_ar(sampler):
        attached = attach(guider, sampler, latent_image, sigmas)
        if attached is not None:
            plan, own = attached
            at_start(guider.model_patcher, lambda: [host_run(plan, own)], latent_image.shape, 1, own)
    else:
        warn_unused(guider.model_options)
    output = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    slot.end(output)
    measured = settings.measure is not None  # most of its time went there
    if slot.runs[-1].record is not None and settings.ranks is None and not measured:  # of one device
        note_speed(guider.model_patcher, slot.runs[-1].record, output.shape[0])
    return output


def with_slot(model: Any) -> Any:
    """The model itself, made by a loader of ours, with room for the record of a run."""
    model.model_options.setdefault(KEY, FlowCacheSettings())
    install_outer(model)
    return model


def with_reuse(model: Any, reuse: ReuseSettings | AutoReuse) -> Any:
    """A clone of the host's ModelPatcher that carries ``reuse``; SettingError when it already carries some."""
    current = settings_of(model.model_options)
    if current.reuse is not None:
        raise SettingError("model", "already has FlowCache Chunkwise Reuse", "one such node; remove one of the two")
    return _carry(model, replace(current, reuse=reuse, slot=RecordSlot()))


def with_kv(model: Any, kv: KVSettings) -> Any:
    """A clone of the host's ModelPatcher that carries ``kv``; SettingError when it already carries some."""
    current = settings_of(model.model_options)
    if current.kv is not None:
        raise SettingError("model", "already has a KV Cache Compressor", "one such node; remove one of the two")
    return _carry(model, replace(current, kv=kv, slot=RecordSlot()))


def with_sparse(model: Any, sparse: SparseSettings, heads: SparsePreset | None = None) -> Any:
    """A clone of the host's ModelPatcher that carries ``sparse``, from the preset ``heads``; SettingError when it
    already carries some, or another node's sparse attention.
    """
    return _carry(model, replace(_without_sparse(model), sparse=sparse, heads=heads, slot=RecordSlot()))


def with_measuring(model: Any, measure: MeasureHeads) -> Any:
    """A clone of the host's ModelPatcher whose runs measure its heads; SettingError as in :func:`with_sparse`."""
    return _carry(model, replace(_without_sparse(model), measure=measure, slot=RecordSlot()))


def _without_sparse(model: Any) -> FlowCacheSettings:
    current = settings_of(model.model_options)
    if current.sparse is not None or current.measure is not None:
        raise SettingError("model", "already has FlowCache Sparse Attention", "one such node; remove one of the two")
    refuse_other_sparse(model.model_options)
    return current


def with_ranks(model: Any, ranks: RanksChoice | None) -> Any:
    """A clone of the host's ModelPatcher that is sampled on ``ranks``, None for here; SettingError when it already
    carries some.
    """
    current = settings_of(model.model_options)
    if current.ranks is not None:
        raise SettingError("model", f"already has {RANKS}", "one such node; remove one of the two")
    return _carry(model, replace(current, ranks=ranks, slot=RecordSlot()))


def _carry(model: Any, settings: FlowCacheSettings) -> Any:
    refuse_other_caches(model.model_options)
    clone = model.clone()
    clone.model_options[KEY] = settings
    install_outer(clone)
    return clone
