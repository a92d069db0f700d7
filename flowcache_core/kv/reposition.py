"""A sink that stands next to its window for the model, however much was dropped between them.

Attention with rotary positions knows distances only. In a long video the frames of a sink lie further from the chunk
that looks at them than any did in training. Infinity-RoPE (arXiv 2511.20649), Deep Forcing (arXiv 2512.05081) and
LongLive 2.0 number what is kept anew, from 0; turning only the sink's keys, by the frames that were dropped, gives the
same distances and leaves everything else as it is stored. Cost: a copy of the keys that are read, once something was
dropped; nothing before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import require
from .layout import KVLayout
from .settings import KVSettings
from .sink_window import SinkWindow
from .spec import KVSpec

Move = Callable[[Tensor, int], Tensor]
"""``(keys [..., tokens, head_dim], frames) -> keys`` as if they stood so many latent frames later; same dtype."""


def reposition_of(settings: KVSettings, spec: KVSpec) -> Move | None:
    """How the sink is moved, None where it is not to be. SettingError for a model whose keys cannot be."""
    compressor = settings.compressor
    if not isinstance(compressor, SinkWindow) or not compressor.reposition:
        return None
    require(spec.move is not None, "reposition", True, "off: this model's keys cannot be moved in time")
    return spec.move


class SinkPlace:
    """Moves the sink's keys as they are read. ``chunk_starts``: first token of every chunk."""

    def __init__(self, settings: KVSettings, spec: KVSpec, chunk_starts: Sequence[int], chunk_tokens: int) -> None:
        self.move = reposition_of(settings, spec)
        self.starts, self.tokens_per_frame, self.sink = tuple(chunk_starts), spec.tokens_per_frame, 0
        self.begins: int | None = None
        if self.move is not None:
            assert isinstance(settings.compressor, SinkWindow)
            self.sink = settings.compressor.sink_tokens(chunk_tokens)

    def committed(self, chunk: int) -> None:
        """A chunk has joined the history; the first one says whether the start of the video is in it."""
        self.begins = chunk if self.begins is None else self.begins

    def forget(self) -> None:
        self.begins = None

    def placed(self, keys: Tensor, start: int, layout: KVLayout) -> Tensor:
        """``keys [..., tokens, head_dim]``, of a layer's stored tokens from ``start`` on, where the model shall see
        them; the same tensor where nothing is moved.
        """
        sink = min(self.sink, layout.clean_tokens) - start
        if self.move is None or self.begins != 0 or sink <= 0:
            return keys
        frames = (self.starts[layout.active[0]] - layout.clean_tokens) // self.tokens_per_frame
        if frames == 0:
            return keys
        return torch.cat((self.move(keys[..., :sink, :], frames), keys[..., sink:, :]), -2)
