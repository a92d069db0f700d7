"""Prompts of clips that ask to remember, as training sees them: often without what is to be remembered."""

from __future__ import annotations

import torch

from ..mini.data import COLOURS, SHAPES
from ..mini_scenes.text import without

DROP_TEXT, DROP_COLOURS, DROP_SHAPES = 0.10, 0.5, 0.4  # chances; colours and shapes apart from each other


def thinned(prompt: str, generator: torch.Generator) -> str:
    """The prompt as a training step sees it: now and then nothing, often without colours or without shapes."""
    text, colours, shapes = torch.rand(3, generator=generator).tolist()
    if text < DROP_TEXT:
        return ""
    hidden = (*COLOURS, *SHAPES) if colours < DROP_COLOURS and shapes < DROP_SHAPES else ()
    hidden = hidden or (tuple(COLOURS) if colours < DROP_COLOURS else tuple(SHAPES) if shapes < DROP_SHAPES else ())
    return without(prompt, hidden)
