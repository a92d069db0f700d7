"""Guidance on a schedule: the branch without text is computed now and then, and reused between."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ...denoiser import ChunkInput, ChunkOutput
from ...errors import require, require_count
from ...kv.cache import KVCache
from ...rows import Rows
from .denoiser import WanDenoiser


@dataclass
class GuidanceRefresh(WanDenoiser):
    """Runs both branches at every ``every``-th computed step of a chunk, and at its first and last; elsewhere only the
    one with text. What the branch without text would have answered is taken to lie as far from it as it last did.

    The idea of TRAC (arXiv 2610.02779), which plans such refreshes over the whole video. Half a forward is saved at
    each step without one, and the K/V of the branch without text stay as old as its last; those of the last step are
    fresh. Steps with sparse attention, whose masks are kept for all branches, run both.
    """

    every: int = 2
    distances: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    computed: dict[int, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("guidance_every", self.every, minimum=1)
        require(self.every == 1 or self.branches == 2, "guidance_every", self.every, "1 without guidance: one branch")
        if self.every > 1:
            _ = self.with_text  # made now: it looks at the prompts, for which the host waits

    @cached_property
    def with_text(self) -> WanDenoiser:
        """The same model without guidance, which runs the branch with text alone."""
        one = WanDenoiser(self.transformer, self.prompts, 1.0, self.fps)
        one.axes = self.axes  # rotations are the same
        return one

    def compute(
        self, item: ChunkInput, cache: KVCache, *, keep_residual: bool = False, rows: Rows | None = None
    ) -> ChunkOutput:
        if self.every == 1:
            return super().compute(item, cache, keep_residual=keep_residual, rows=rows)
        chunk, last = item.chunk.index, item.step == cache.plan.steps - 1
        number = 0 if item.step == 0 else self.computed[chunk] + 1
        self.computed[chunk] = number
        if number % self.every and not last and not keep_residual and item.sparse is None:
            output = self.with_text.compute(item, cache, rows=rows)
            (cond,) = output.velocity
            return ChunkOutput(torch.stack((cond, cond + self.distances[chunk])), rows=output.rows, branches=1)
        output = super().compute(item, cache, keep_residual=keep_residual, rows=rows)
        cond, uncond = output.velocity
        self.distances[chunk] = uncond - cond
        if last:
            self.distances.pop(chunk, None)
            self.computed.pop(chunk, None)
        return output
