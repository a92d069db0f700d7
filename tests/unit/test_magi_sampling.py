"""MAGI-1 through the engine: against plain loops that recompute everything from the definition, and its event tables."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from flowcache_core.engine import EngineSettings, generate
from flowcache_core.errors import SettingError
from flowcache_core.kv.importance_redundancy import ImportanceRedundancy
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.magi import MagiTransformer
from flowcache_core.models.magi_config import MagiConfig
from flowcache_core.models.magi_denoiser import MagiDenoiser
from flowcache_core.models.magi_guidance import GuidanceScales
from flowcache_core.plan import PLANS
from flowcache_core.plan.window import window
from flowcache_core.report.events import CacheCompressed, CachePass, ChunkFinished, StepTaken
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.distance import PatchDistance
from flowcache_core.reuse.forecast import Forecast
from flowcache_core.reuse.quantity import Increment, Quantity, Residual, Velocity
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.schedule import magi, magi_distill_times, shifted

TINY = MagiConfig(48, 40, 2, 6, 2, 8, 12, text_dim=20, text_len=60, freq_dim=16, bands=1)
FRAMES = 2  # latent frames of a chunk
STEPS = 8
CHUNKS = 6


@pytest.fixture(scope="module")
def model() -> MagiTransformer:
    model = MagiTransformer(TINY)
    draw = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw)
    return model.eval().requires_grad_(False)


def captions(chunks: int = CHUNKS) -> dict[int, tuple[Tensor, Tensor]]:
    """Another caption for every chunk, as duration tokens make it."""
    draw = torch.Generator().manual_seed(5)
    found = {}
    for chunk in range(chunks):
        mask = torch.zeros(1, 60)
        mask[:, : 3 + chunk] = 1
        found[chunk] = (torch.randn(1, 60, 20, generator=draw), mask)
    return found


def noise(chunks: int = CHUNKS, batch: int = 1) -> Tensor:
    return torch.randn(batch, 16, FRAMES * chunks, 4, 4, generator=torch.Generator().manual_seed(7))


def distilled(model: MagiTransformer, steps: int = STEPS, **changes) -> MagiDenoiser:
    return MagiDenoiser(model, captions(), step_times=magi_distill_times(steps), **changes)


def engine(chunks: int = CHUNKS, prefix_frames: int = 0, steps: int = STEPS, **changes) -> EngineSettings:
    plan = window(FRAMES * chunks, FRAMES, steps, 4, prefix_frames, hold_prefix=True)
    return EngineSettings(**({"plan": plan, "schedule": magi(steps), "clean_pass": True, "clean_timestep": 0.9999} | changes))


# -- the definition, written down without cache, plan, engine or denoiser ---------------------------------------------


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

    def times(self) -> list[float]:
        u = torch.linspace(0, 1, self.steps + 1)
        t = u * u
        return ((t / 3) / (1 + (1 / 3 - 1) * t)).tolist()

    def forward(self, x, t, caption, kv, chunk, count, *, dropped=False, position=None, own_only=False):
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
            memory=memory,
            dropped=dropped,
            step_time=self.steps / 2 if self.distill else None,
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
        null, nothing = (null_rows, null_mask), (null_rows, torch.zeros(1, 60))
        part = lambda c: x[:, :, c * FRAMES : (c + 1) * FRAMES]  # noqa: E731
        everything = chunks + 1

        def encode(chunk, caption):
            count = self.ranges[-1] if self.ranges else everything
            for_all = previous if self.scales else text
            self.forward(part(chunk), 0.9999, caption, for_all, chunk, count, dropped=bool(self.scales))
            for layer in for_all:
                text.setdefault(layer, {})[chunk] = for_all[layer][chunk]

        for chunk in range(offset):
            encode(chunk, null if self.scales else nothing)
        for newest in range(offset, chunks + 3):
            oldest = max(offset, newest - 3)
            if newest - 4 >= offset and self.clean_pass:
                encode(newest - 4, null)
            for tick in range(per):
                for chunk in range(oldest, min(chunks, newest + 1)):
                    step = (newest - chunk) * per + tick
                    count = self.ranges[step // (self.steps // len(self.ranges))] if self.ranges else everything
                    now, own = part(chunk), captions()[chunk]
                    v = self.forward(now, t[step], own, text, chunk, count)
                    if self.scales:
                        a, b = self.scales.at(t[step])
                        vp = self.forward(now, t[step], null, previous, chunk, count, dropped=True)
                        vu = self.forward(now, t[step], null, {}, chunk, 1, dropped=True, position=0, own_only=True)
                        v = (1 - a) * vu + (a - b) * vp + b * v
                    if self.nearly_clean and chunk == oldest and t[step] > 0.3:
                        behind = min(chunks, newest + 1) * FRAMES
                        v = 0.7 * v + 0.3 * self.forward(now, t[step], own, {}, chunk, 1, position=behind, own_only=True)
                    x[:, :, chunk * FRAMES : (chunk + 1) * FRAMES] = now + v * (t[step + 1] - t[step])
                    if prefix is not None:
                        x[:, :, :given] = prefix
        return x


SCALES = GuidanceScales(text=(3.0, 3.0, 2.0, 0.0, 0.0))
VARIANTS = {
    "distilled": ({"distill": True}, {"nearly_clean": False}),
    "distilled-nearly-clean": ({"distill": True, "nearly_clean": True}, {}),
    "guided": ({"scales": SCALES}, {}),
    "no-clean-pass": ({"distill": True, "clean_pass": False}, {"nearly_clean": False}),
    "ranges": ({"distill": True, "ranges": (4, 3, 2, 2)}, {"nearly_clean": False, "ranges": (4, 3, 2, 2)}),
    "guided-ranges": ({"scales": SCALES, "ranges": (3, 2)}, {"ranges": (3, 2)}),
}


def denoiser_of(model: MagiTransformer, plain: Plain, options: dict) -> MagiDenoiser:
    if plain.scales:
        return MagiDenoiser(model, captions(), guidance=plain.scales, **options)
    return distilled(model, plain.steps, **options)


def assert_close(ours: Tensor, expected: Tensor) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("prefix_frames", [0, 1, 2, 5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_engine_is_the_plain_loop(model, variant, prefix_frames):
    loop, options = VARIANTS[variant]
    plain = Plain(model, **loop)
    prefix = noise(CHUNKS)[:, :, -prefix_frames:] * 0.5 if prefix_frames else None
    settings = engine(prefix_frames=prefix_frames, clean_pass=plain.clean_pass)
    ours = generate(denoiser_of(model, plain, options), settings, noise(), prefix=prefix)
    assert_close(ours, plain.run(noise(), prefix))
    if prefix is not None:
        assert torch.equal(ours[:, :, :prefix_frames], prefix)
