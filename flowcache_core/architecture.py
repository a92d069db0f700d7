"""Which transformer a preset or a recording is of, in words that two machines write alike."""

from __future__ import annotations

from typing import Any

from .models.magi.config import MagiConfig
from .models.magi.transformer import MagiTransformer


def architecture_of(transformer: Any) -> str:
    """Such as "wan, 1536 wide, 30 layers": of the core's transformer, its config, or a host's own; "" for one without
    these sizes.

    Weights play no part: a fine-tune, a LoRA or another number format leaves it as it is.
    """
    sizes = getattr(transformer, "config", transformer)
    family = "magi" if isinstance(transformer, MagiTransformer) or isinstance(sizes, MagiConfig) else "wan"
    width, layers = getattr(sizes, "dim", None), getattr(sizes, "num_layers", None)
    known = isinstance(width, int) and isinstance(layers, int)
    return f"{family}, {width} wide, {layers} layers" if known else ""
