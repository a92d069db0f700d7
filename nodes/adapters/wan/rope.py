"""Rotary positions of a chunk inside the video."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def chunk_positions(transformer_options: Mapping[str, Any], first_frame: int) -> dict[str, Any]:
    """``rope_options`` that put a chunk at its own frames, on top of what another node scales or shifts."""
    given = transformer_options.get("rope_options") or {}
    shift = given.get("shift_t", 0.0) + first_frame * given.get("scale_t", 1.0)
    return {**given, "shift_t": shift}


@contextmanager
def exact_positions(diffusion_model: Any) -> Iterator[None]:
    """Position numbers in float32: the host makes them in the model's dtype, and bfloat16 has no 257."""
    original = diffusion_model.rope_encode
    patched = "rope_encode" in vars(diffusion_model)  # by another pack's object patch

    def rope_encode(*args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, "dtype": torch.float32})

    diffusion_model.rope_encode = rope_encode
    try:
        yield
    finally:
        if patched:
            diffusion_model.rope_encode = original
        else:
            del diffusion_model.rope_encode
