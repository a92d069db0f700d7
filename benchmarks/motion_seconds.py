"""What a step in part costs beside the tokens that it computes: gathering, scattering and writing K/V by rows.

    python dev.py bench motion --seconds

One chunk of 1536 tokens (3 frames of 16 x 32) behind two others, a Wan transformer of 2 layers with random weights.
Every repetition times all ways one after the other, so that what else the machine does falls on all of them; medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowcache_core.denoiser import ChunkInput
from flowcache_core.kv.cache import KVCache
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.plan import blockwise
from flowcache_core.rows import Rows

CONFIG = WanConfig(dim=512, ffn_dim=2048, num_layers=2, num_heads=4, text_dim=512)
FRAMES, ROWS, COLUMNS = 3, 16, 32
SHARES = (0.8, 0.5, 0.3)
TEXT = 64  # tokens of the prompt


@dataclass(frozen=True)
class Timed:
    """Medians of one share. part, whole: seconds of a forward. moving: of gathering and scattering alone, all layers'
    K/V by rows less the same K/V in one piece among it.
    """

    share: float
    part: float
    whole: float
    moving: float

    def __str__(self) -> str:
        return (
            f"{self.share:5.0%} of the tokens: a step in part takes {self.part / self.whole:6.1%} of a whole one, "
            f"gathering and scattering {self.moving / self.whole:6.2%}"
        )


def measure(repetitions: int, config: WanConfig = CONFIG) -> list[Timed]:
    torch.manual_seed(0)
    model = WanTransformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    plan = blockwise(3 * FRAMES, FRAMES, 4)
    latents = torch.randn(1, config.in_dim, FRAMES, 2 * ROWS, 2 * COLUMNS)
    denoiser = WanDenoiser(model, {0: [torch.randn(1, TEXT, config.text_dim)]})
    cache = KVCache(denoiser.kv_spec(latents), KVSettings(), plan)
    for chunk in plan.chunks[:2]:
        cache.begin(chunk)
        denoiser.compute(ChunkInput(chunk, 0, 1.0, 1000.0, latents), cache)
        cache.commit(chunk)
    chunk = plan.chunks[2]
    cache.begin(chunk)
    item = ChunkInput(chunk, 0, 1.0, 1000.0, latents)
    denoiser.compute(item, cache)
    return [timed(share, repetitions, denoiser, cache, item) for share in SHARES]


def timed(share: float, repetitions: int, denoiser: WanDenoiser, cache: KVCache, item: ChunkInput) -> Timed:
    tokens = FRAMES * ROWS * COLUMNS
    index = torch.randperm(tokens)[: round(share * tokens)].sort().values
    rows = Rows(index, (FRAMES, ROWS, COLUMNS))
    ways: dict[str, Callable[[], Any]] = {
        "whole": lambda: denoiser.compute(item, cache),
        "part": lambda: denoiser.compute(item, cache, rows=rows),
        **moves(denoiser, cache, item, rows),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.no_grad():
        for _ in range(repetitions):
            for name, way in ways.items():
                begun = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - begun)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    moving = middle["gather and scatter"] + max(0.0, middle["K/V by rows"] - middle["K/V in one piece"])
    return Timed(share, middle["part"], middle["whole"], moving)


def moves(denoiser: WanDenoiser, cache: KVCache, item: ChunkInput, rows: Rows) -> dict[str, Callable[[], Any]]:
    """What a forward of rows does that a forward of as many tokens would not."""
    model, spec = denoiser.transformer, cache.spec
    embedded = torch.randn(1, rows.tokens, model.config.dim)
    table = torch.randn(rows.tokens, spec.head_dim // 2, dtype=torch.complex64)
    part = torch.randn(1, rows.count, model.config.dim)
    own = [torch.randn(1, spec.kv_heads, rows.count, spec.head_dim) for _ in range(2)]
    start = cache.layouts[0].span(item.chunk.index)[0]
    buffer = torch.zeros(1, spec.kv_heads, start + rows.tokens, spec.head_dim)

    def gather_and_scatter() -> tuple[Tensor, ...]:
        return embedded[:, rows.index], table[rows.index], embedded.index_copy(1, rows.index, part)

    def by_rows() -> None:
        for layer in range(spec.layers):
            cache.write(layer, range(1), item.chunk, own[0], own[1], rows)

    def in_one_piece() -> None:
        for _ in range(spec.layers):
            for values in own:
                buffer[:, :, start : start + rows.count] = values

    return {"gather and scatter": gather_and_scatter, "K/V by rows": by_rows, "K/V in one piece": in_one_piece}
