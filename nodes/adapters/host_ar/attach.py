"""The patch nodes with the host's own AR sampler: what is checked and attached before the model is loaded."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import comfy.k_diffusion.sampling
from comfy.ldm.wan.ar_model import CausalWanModel
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor

from ....flowcache_core.errors import require
from ....flowcache_core.kv.size import run_bytes
from ....flowcache_core.plan.base import Chunk, Plan, offset_ticks
from ....flowcache_core.reuse import QUANTITIES
from ....flowcache_core.schedule import from_sigmas
from ..naming import naming
from ..run.finite import require_finite_inputs
from ..run.memory import announce
from ..run.settings import FlowCacheSettings, refuse_other_caches, run_of, settings_of
from ..run.start_image import image_notes
from ..wan.denoiser import kv_spec
from .order import HOST_SAMPLER, INSTEAD, OUR_SAMPLER
from .run import KEY, HostRun


def is_host_ar(sampler: Any) -> bool:
    """Whether a SAMPLER is what the host's SamplerARVideo makes."""
    return getattr(sampler, "sampler_function", None) is comfy.k_diffusion.sampling.sample_ar_video


def warn_unused(model_options: Any) -> None:
    """Say that the patch nodes on this model change nothing, because no AR sampler runs it."""
    settings = settings_of(model_options)
    chosen = (
        ("FlowCache Chunkwise Reuse", settings.reuse),
        ("KV Cache Compressor", settings.kv),
        ("FlowCache Sparse Attention", settings.sparse or settings.measure),
    )
    names = " and ".join(name for name, setting in chosen if setting is not None)
    if names:
        logging.warning("%s: no effect with this sampler; use %s or %s", names, OUR_SAMPLER, HOST_SAMPLER)


def attach(guider: Any, sampler: Any, latents: Tensor, sigmas: Tensor) -> tuple[Plan, FlowCacheSettings] | None:
    """Before the model is loaded: check, announce the K/V, and have the run wrapped. ``latents`` ``[B, C, F, H, W]``.
    Returns the order of its chunks and what is settled for it, None where the host refuses it.

    ``guider.model_options`` are the run's own copy, so what is put there ends with it.
    """
    options, model = guider.model_options, guider.model_patcher.model
    block = sampler.extra_options.get("num_frame_per_block", 1)
    given = start_frames(options)
    if latents.ndim != 5 or given >= latents.shape[2] or len(sigmas) < 2:
        return None  # the host refuses it, or there is no step to take
    settings = settings_of(options)
    with naming(HOST_SAMPLER):
        plan, schedule = plan_of(latents.shape[2], block, len(sigmas) - 1, given), from_sigmas(sigmas.tolist())
        run = run_of(guider.model_patcher, schedule, guidance=1.0, solver="renoise", plan=plan)
        settings = settings.settled(run)
        check(guider, settings)
        with naming("KV Cache Compressor"):
            kv = settings.kv_settings.by_layer(HOST_SAMPLER)
            here = kv.device in (None, guider.model_patcher.load_device.type)
            kv_bytes = run_bytes(kv_spec(model, latents.shape, 1, "cpu"), kv, plan) if here else 0
        announce(guider, max(chunk.frames for chunk in plan.chunks), kv_bytes)
        for note in image_notes(guider.conds, model.diffusion_model):
            logging.warning("FlowCache: %s", note)

    def sampling(
        executor: Any, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], callback: Any, noise: Tensor, *rest: Any
    ) -> Any:
        with naming(HOST_SAMPLER):
            single_chunk = len(plan.chunks) == 1
            mask = rest[1] if len(rest) > 1 else None
            require(mask is None or single_chunk, "noise mask", "a mask", f"none, or {INSTEAD}")
            require_finite_inputs(noise, guider.conds, ["positive"])
            seed = extra_args.get("seed") or 0
            run = HostRun.of(guider.model_patcher, noise, sigmas, plan, settings, seed)
            return run.sample(partial(executor, guider, sigmas, extra_args, callback, noise, *rest), extra_args)

    add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, sampling, options, is_model_options=True)
    return plan, settings


def refuse_patches(settings: FlowCacheSettings) -> None:
    """SettingError for nodes of ours on the model whose work the host's sampler cannot do."""
    accepted = f"none: this sampler's attention is its own; or {INSTEAD}"
    require(settings.sparse is None and settings.measure is None, "model", "FlowCache Sparse Attention", accepted)
    accepted = f"none: this sampler runs on one device; or {INSTEAD}"
    require(settings.ranks is None, "model", "FlowCache Multi-GPU", accepted)


def check(guider: Any, settings: FlowCacheSettings) -> None:
    """SettingError for what the host's sampler cannot do, as far as it can be seen before the run."""
    model = guider.model_patcher.model
    kind = type(model.diffusion_model).__name__
    causal = isinstance(model.diffusion_model, CausalWanModel)
    require(causal, "model", kind, "a causal Wan model, from Load AR Video Model; or " + INSTEAD)
    refuse_other_caches(guider.model_options)
    cfg = getattr(guider, "cfg", 1.0)
    require(cfg == 1.0 or not guider.conds.get("negative"), "cfg", cfg, f"1, or {INSTEAD}")
    if settings.chosen is not None:
        with naming("FlowCache Chunkwise Reuse"):
            quantity = settings.chosen.quantity
            free = [name for name, kind in QUANTITIES.items() if not kind.needs_residual]
            usable = f"{', '.join(free)}, or {INSTEAD}"
            require(not quantity.needs_residual, "reused quantity", quantity.name, usable)
    refuse_patches(settings)
    kv = settings.kv_settings
    with naming("KV Cache Compressor"):
        merges = kv.compressor is not None and kv.compressor.merges
        accepted = f"another: this sampler's attention takes no weights of tokens; or {INSTEAD}"
        require(not merges, "method", kv.compressor and kv.compressor.name, accepted)


def start_frames(model_options: Any) -> int:
    """Latent frames of ARVideoI2V's start image, 0 without one."""
    config = model_options.get("transformer_options", {}).get("ar_config", {})
    image = config.get("initial_latent")
    return 0 if image is None else image.shape[2]


def plan_of(frames: int, chunk_frames: int, steps: int, given: int) -> Plan:
    """The host's order: the given frames in one pass, then blocks of ``chunk_frames``, the last one shorter."""
    starts = [0, *range(given, frames, chunk_frames)] if given else [*range(0, frames, chunk_frames)]
    ends = [*starts[1:], frames]
    chunks = tuple(Chunk(i, first, end - first) for i, (first, end) in enumerate(zip(starts, ends)))
    prefix = int(given > 0)
    return Plan(HOST_SAMPLER, chunks, steps, offset_ticks(chunks, prefix, steps, steps), prefix)
