"""K/V in the host's memory management: announced before the model is loaded, room made before it is allocated."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_management
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key


def announce(guider: Any, chunk_frames: int, kv_bytes: int) -> None:
    """What the host keeps free in this run: activations of one chunk, since no more is computed at once, and all K/V.

    ``guider.model_options`` are the run's own copy.
    """

    def prepare(executor: Any, model: Any, noise_shape: Any, *args: Any, **kwargs: Any) -> Any:
        return executor(model, enlarged(model.model, list(noise_shape), chunk_frames, kv_bytes), *args, **kwargs)

    add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, "flowcache", prepare, guider.model_options, is_model_options=True)


def enlarged(model: Any, noise_shape: list[int], chunk_frames: int, kv_bytes: int) -> list[int]:
    """A latent shape ``[B, C, F, H, W]`` for which the host estimates a chunk's memory plus ``kv_bytes``."""
    frame = model.memory_required([*noise_shape[:2], 1, *noise_shape[3:]])
    frames = min(chunk_frames, noise_shape[2]) + math.ceil(kv_bytes / frame)
    return [*noise_shape[:2], frames, *noise_shape[3:]]


def make_room(patcher: Any, device: Any, kv_bytes: int) -> None:
    """Unload other models when K/V does not fit beside this one (a MODEL that none of our nodes announced)."""
    if device.type != "cpu":
        needed = kv_bytes + comfy.model_management.minimum_inference_memory()
        if comfy.model_management.get_free_memory(device) < needed:
            keep = [loaded for loaded in comfy.model_management.current_loaded_models if loaded.model is patcher]
            comfy.model_management.free_memory(needed, device, keep_loaded=keep)
