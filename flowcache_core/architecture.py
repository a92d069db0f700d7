"""Which transformer a preset or a recording is of, in words that two machines write alike."""

from __future__ import annotations

from typing import Any

from .models.magi.transformer import MagiTransformer


def architecture_of(transformer: Any) -> str:
    """Such as "wan, 1536 wide, 30 layers": the core's transformer or a host's own; "" for one without these sizes.

    Weights play no part: a fine-tune, a LoRA or another number format leaves it as it is.
    """
    family = "magi" if isinstance(transformer, MagiTransformer) else "wan"
    sizes = getattr(transformer, "config", transformer)
    width, layers = getattr(sizes, "dim", None), getattr(sizes, "num_layers", None)
    known = isinstance(width, int) and isinstance(layers, int)
    return f"{family}, {width} wide, {layers} layers" if known else ""
