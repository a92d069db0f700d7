"""MAGI-1's loop written down from its definition, without cache, plan, engine or denoiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from magi_sampled import FRAMES, STEPS, captions
from torch import Tensor

from flowcache_core.models.common.cached_attention import attending
from flowcache_core.models.magi.guidance import GuidanceScales
from flowcache_core.models.magi.layers import attend_grouped
from flowcache_core.models.magi.transformer import MagiTransformer

SCALES = GuidanceScales(text=(3.0, 3.0, 2.0, 0.0, 0.0))


@dataclass
class Plain:
    """MAGI-1's loop over stages (arXiv 2505.13211): all K/V in dictionaries, time from 0 to 1, x += v dt."""

    model: MagiTransformer
    steps: int = STEPS
    scales: GuidanceScales | None = None
    distill: bool = False
    nearly_clean: bool = False
    clean_pass: bool = True
    ranges: tuple[int, ...] = ()
    clean_range: int = 1

    def times(self) -> list[float]:
        u = torch.linspace(0, 1, self.steps + 1)
        if self.steps == 12:
            u = torch.tensor([quarter / 4 + offset for quarter in range(4) for offset in (0, 0.125, 0.1875)] + [1.0])
        t = u * u
        return ((t / 3) / (1 + (1 / 3 - 1) * t)).tolist()

    def step_time(self, step: int) -> float:
        return 2 * 4 / (2, 1, 1)[step % 3] if self.steps == 12 else 2 * self.steps / 4

    def forward(self, x, t, caption, kv, chunk, count, *, dropped=False, position=None, own_only=False, step=0):
        """Velocity of a chunk; ``kv[layer][chunk]`` is written and the last ``count`` chunks are seen."""

        def memory(layer, q, k, v):
            if own_only:
                return k, v
            kv.setdefault(layer, {})[chunk] = (k, v)
            pairs = [kv[layer][c] for c in range(max(0, chunk + 1 - count), chunk + 1)]
            return torch.cat([k for k, _ in pairs], 2), torch.cat([v for _, v in pairs], 2)

        first = chunk * FRAMES if position is None else position
        return self.model.forward_chunk(
            x,
            torch.full((x.shape[0],), t),
            *caption,
            first_frame=first,
            attention=attending(memory, attend_grouped),
            dropped=dropped,
            step_time=self.step_time(step) if self.distill else None,
        )

    def run(self, x: Tensor, prefix: Tensor | None = None) -> Tensor:
        x, t, per = x.clone(), self.times(), self.steps // 4
        chunks, given = x.shape[2] // FRAMES, 0 if prefix is None else prefix.shape[2]
        if prefix is not None:
            x[:, :, :given] = prefix
        offset = given // FRAMES
        text, previous = {}, {} if self.scales else None
        null_rows = self.model.y_embedder.null_caption_embedding[None]
        null_mask = (torch.arange(60) < 50).float()[None]
        null = (null_rows, null_mask)
        part = lambda c: x[:, :, c * FRAMES : (c + 1) * FRAMES]  # noqa: E731
        everything = chunks + 1

        def encode(chunk):
            count = self.clean_range if self.ranges else everything
            for kv in (text, previous) if self.scales else (text,):
                self.forward(part(chunk), 0.9999, null, kv, chunk, count, dropped=kv is previous)

        def share(chunk):
            for layer in previous or {}:
                text[layer][chunk] = previous[layer][chunk]

        for chunk in range(offset):
            encode(chunk)
            share(chunk)
        for newest in range(offset, chunks + 3):
            oldest = max(offset, newest - 3)
            finished = newest - 4 if newest - 4 >= offset and self.clean_pass else None
            if finished is not None:
                encode(finished)
            for tick in range(per):
                for chunk in range(oldest, min(chunks, newest + 1)):
                    step = (newest - chunk) * per + tick
                    count = self.ranges[step // (self.steps // len(self.ranges))] if self.ranges else everything
                    now, own = part(chunk), captions()[chunk]
                    v = self.forward(now, t[step], own, text, chunk, count, step=step)
                    if self.scales:
                        a, b = self.scales.at(t[step])
                        vp = self.forward(now, t[step], null, previous, chunk, count, dropped=True)
                        vu = self.forward(now, t[step], null, {}, chunk, 1, dropped=True, position=0, own_only=True)
                        v = (1 - a) * vu + (a - b) * vp + b * v
                    if self.nearly_clean and chunk == oldest and t[step] > 0.3:
                        behind = min(chunks, newest + 1) * FRAMES
                        alone = self.forward(now, t[step], own, {}, chunk, 1, position=behind, own_only=True, step=step)
                        v = 0.7 * v + 0.3 * alone
                    x[:, :, chunk * FRAMES : (chunk + 1) * FRAMES] = now + v * (t[step + 1] - t[step])
                    if prefix is not None:
                        x[:, :, :given] = prefix
                if tick == 0 and finished is not None:
                    share(finished)
        return x


def assert_close(ours: Tensor, expected: Tensor) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
