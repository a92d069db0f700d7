"""Joint attention: active chunks at different noise levels in one forward, beside the K/V of clean ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from dummy import DummyDenoiser
from torch import Tensor

from flowcache_core.cost.counted import count
from flowcache_core.cost.shapes import WanShape
from flowcache_core.dry_run.probe import largest_forward
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.errors import SettingError
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.sink_window import SinkWindow
from flowcache_core.kv.storage import STORAGES
from flowcache_core.models.magi.denoiser import MagiDenoiser
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.transformer import WanConfig, WanTransformer
from flowcache_core.noise import seeded_noise
from flowcache_core.plan import blockwise, staggered
from flowcache_core.plan.base import Chunk, ChunkStep, Plan, Tick
from flowcache_core.plan.shots import Shots
from flowcache_core.released import RELEASED
from flowcache_core.report.events import StepTaken
from flowcache_core.reuse.foretold import foretold
from flowcache_core.reuse.interval import Interval
from flowcache_core.reuse.quantity import Residual
from flowcache_core.solvers.renoise import ReNoise
from flowcache_core.sparse import METHODS
from flowcache_core.sparse.settings import SparseSettings

LONG, ROLLING = RELEASED["Causal-Forcing 1.3B, long video"], RELEASED["Rolling Forcing 1.3B"]
HEAD_DIM, TOKENS = 24, 4


@pytest.fixture(scope="module")
def transformer() -> WanTransformer:
    torch.manual_seed(0)
    config = WanConfig(dim=48, ffn_dim=64, num_layers=2, num_heads=2, text_dim=16, freq_dim=16)
    model = WanTransformer(config).eval().requires_grad_(False)
    torch.nn.init.normal_(model.head.head.weight, std=0.1)
    return model


def text(seed: int = 1) -> Tensor:
    return torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(seed))


def noise_of(frames: int) -> Tensor:
    return torch.randn(1, 16, frames, 4, 4, generator=torch.Generator().manual_seed(2))


def settings_of(row: object, frames: int, prefix: int = 0, **others: object) -> EngineSettings:
    plan = row.plan.plan(frames, row.schedule.steps, prefix)  # type: ignore[attr-defined]
    shaped = {"attention": row.attention, "joint_frames": row.joint_frames}  # type: ignore[attr-defined]
    fields = {"kv": row.kv(), "clean_pass": True, **shaped, **others}  # type: ignore[attr-defined]
    return EngineSettings(plan, row.schedule, ReNoise(), **fields)  # type: ignore[attr-defined]


# -- the paper's loop, without plan, engine or cache -------------------------------------------------------------------


@dataclass
class Rolling:
    """Rolling Forcing (arXiv 2509.25161) as it describes itself: a window of as many chunks as there are noise levels
    slides by one chunk; its chunks are one level apart and denoised together; what leaves it is run once more, clean,
    and its K/V kept. Attention sees the first chunk, moved up to what else is seen, the newest kept chunks and the
    window: so many frames in all; the clean run as many of the newest.

    kept: chunk -> layer -> (keys, values) at the frames where the chunk stands. room: frames that are seen in all.
    """

    model: WanTransformer
    text: Tensor
    levels: tuple[float, ...]
    chunk: int
    room: int
    kept: dict[int, dict[int, tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def forward(self, x: Tensor, first: int, levels: list[float], store: int | None = None) -> Tensor:
        """Clean prediction of the chunks ``x`` from chunk ``first`` on, each at its own level."""
        history = self.history(first, x.shape[2]) if store is None else self.newest(first)
        if store is not None:
            self.kept[store] = {}

        def attention(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if store is not None:
                self.kept[store][layer] = (k, v)
            keys = torch.cat([*(turned(self.kept[c][layer][0], by) for c, by in history), k], 2)
            values = torch.cat([*(self.kept[c][layer][1] for c, _ in history), v], 2)
            weights = torch.softmax(q @ keys.transpose(-1, -2) / math.sqrt(HEAD_DIM), -1)
            return weights @ values

        frames = [level for level in levels for _ in range(self.chunk)]
        times = torch.tensor([[1000.0 * level for level in frames]])
        flow = self.model.forward_chunk(x, times, self.text, first_frame=first * self.chunk, attention=attention)
        assert isinstance(flow, Tensor)
        return x - torch.tensor(frames).view(1, 1, -1, 1, 1) * flow

    def history(self, first: int, frames: int) -> list[tuple[int, int]]:
        """Kept chunks that a window from ``first`` on sees, and by how many frames each is moved."""
        newest = (self.room - frames) // self.chunk - 1
        recent = [chunk for chunk in range(max(1, first - newest), first)]
        if first == 0:
            return []
        return [(0, (first - len(recent) - 1) * self.chunk), *((chunk, 0) for chunk in recent)]

    def newest(self, first: int) -> list[tuple[int, int]]:
        """What a clean pass sees: the newest kept chunks, where they stand, no sink."""
        return [(chunk, 0) for chunk in range(max(0, first + 1 - self.room // self.chunk), first)]

    def video(self, noise: Tensor, fresh: Callable[[int, int, Tensor], Tensor]) -> Tensor:
        chunks = noise.shape[2] // self.chunk
        latents, done = noise.clone(), dict.fromkeys(range(chunks), 0)
        part = lambda one: slice(one * self.chunk, (one + 1) * self.chunk)  # noqa: E731
        for tick in range(chunks + len(self.levels) - 1):
            window = range(max(0, tick - len(self.levels) + 1), min(chunks - 1, tick) + 1)
            x = latents[:, :, window.start * self.chunk : window.stop * self.chunk]
            clean = self.forward(x, window.start, [self.levels[done[one]] for one in window])
            for place, one in enumerate(window):
                mine, step = clean[:, :, part(place)], done[one]
                done[one] += 1
                if done[one] == len(self.levels):
                    latents[:, :, part(one)] = mine
                else:
                    level = self.levels[done[one]]
                    latents[:, :, part(one)] = (1 - level) * mine + level * fresh(one, step, mine)
            if done[window.start] == len(self.levels):
                self.forward(latents[:, :, part(window.start)], window.start, [0.0], store=window.start)
        return latents


def turned(keys: Tensor, frames: int) -> Tensor:
    """Rotated keys some frames later. Of a head's pairs, those that turn with the frame come first (Wan 2.1)."""
    pairs = (HEAD_DIM - 4 * (HEAD_DIM // 6)) // 2
    angle = frames * 10000.0 ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    out = keys.clone()
    for i, (cos, sin) in enumerate(zip(angle.cos().tolist(), angle.sin().tolist(), strict=True)):
        a, b = keys[..., 2 * i], keys[..., 2 * i + 1]
        out[..., 2 * i], out[..., 2 * i + 1] = a * cos - b * sin, a * sin + b * cos
    return out


@pytest.mark.parametrize("row", [LONG, ROLLING], ids=lambda row: row.title)
@pytest.mark.parametrize("frames", [3, 9, 21, 51])
def test_equals_the_papers_loop(transformer: WanTransformer, row: object, frames: int) -> None:
    """Shorter than the window, as long, and so long that the sink is moved and chunks are dropped."""
    straight = Rolling(transformer, text(), row.schedule.sigmas[:-1], 3, 21)  # type: ignore[attr-defined]
    expected = straight.video(noise_of(frames), seeded_noise(7))
    denoiser = WanDenoiser(transformer, {0: (text(),)})
    found = generate(denoiser, settings_of(row, frames), noise_of(frames), noise_source=seeded_noise(7))
    assert (found - expected).abs().max() < 1e-5


def test_the_moved_sink_and_the_window_are_felt(transformer: WanTransformer) -> None:
    """What the equality above rests on makes a difference: the sink's place, its presence, the chunks' meeting."""
    denoiser, noise = WanDenoiser(transformer, {0: (text(),)}), noise_of(36)
    video = generate(denoiser, settings_of(LONG, 36), noise)
    still = KVSettings(7, SinkWindow(sink=1.0))
    for other in (
        settings_of(LONG, 36, kv=still),
        settings_of(LONG, 36, kv=KVSettings(7, SinkWindow(sink=0.0))),
        settings_of(LONG, 36, attention="block-causal", joint_frames=0),
    ):
        assert (generate(denoiser, other, noise) - video).abs().max() > 1e-3


# -- laws --------------------------------------------------------------------------------------------------------------


def test_one_chunk_at_a_time_is_block_causal(transformer: WanTransformer) -> None:
    denoiser = WanDenoiser(transformer, {0: (text(), text(2))}, 3.0)
    plan, noise = blockwise(9, 3, 4), noise_of(9)
    causal = EngineSettings(plan, LONG.schedule, ReNoise(), clean_pass=True)
    joint = generate(denoiser, replace(causal, attention="joint"), noise)
    assert (joint - generate(denoiser, causal, noise)).abs().max() < 1e-5


def test_all_chunks_at_once_are_a_bidirectional_window(transformer: WanTransformer) -> None:
    denoiser = WanDenoiser(transformer, {0: (text(), text(2))}, 3.0)
    plan, noise = staggered(9, 3, 4, 0), noise_of(9)
    whole = EngineSettings(plan, LONG.schedule, ReNoise(), attention="bidirectional")
    joint = generate(denoiser, replace(whole, attention="joint"), noise)
    assert (joint - generate(denoiser, whole, noise)).abs().max() < 1e-5


def test_a_chunk_sees_the_ones_behind_it(transformer: WanTransformer) -> None:
    """Other noise in the last chunk changes those in work with it, and none that were done before it began."""
    denoiser, noise = WanDenoiser(transformer, {0: (text(),)}), noise_of(18)
    other = noise.clone()
    other[:, :, 15:] += 1.0
    one, two = (generate(denoiser, settings_of(LONG, 18), given) for given in (noise, other))
    assert torch.equal(one[:, :, :6], two[:, :, :6])
    assert (one[:, :, 6:] - two[:, :, 6:]).abs().amin((0, 1, 3, 4)).min() > 0


@pytest.mark.parametrize("storage", STORAGES)
def test_any_storage_and_prompts_by_chunk(transformer: WanTransformer, storage: str) -> None:
    denoiser, noise = WanDenoiser(transformer, {0: (text(),), 3: (text(5),)}), noise_of(24)
    plain = generate(denoiser, settings_of(LONG, 24), noise)
    kv = replace(LONG.kv(), storage=STORAGES[storage]())
    packed = generate(denoiser, settings_of(LONG, 24, kv=kv), noise)
    assert packed.isfinite().all() and (packed - plain).abs().mean() < 0.3 * plain.abs().mean()
    same = generate(WanDenoiser(transformer, {0: (text(),)}), settings_of(LONG, 24), noise)
    assert not torch.allclose(same, plain, atol=1e-3)


def test_a_given_start_is_history(transformer: WanTransformer) -> None:
    denoiser, noise = WanDenoiser(transformer, {0: (text(),)}), noise_of(18)
    given = noise_of(6) * 0.3
    video = generate(denoiser, settings_of(LONG, 18, 6), noise, prefix=given)
    other = generate(denoiser, settings_of(LONG, 18, 6), noise, prefix=-given)
    assert torch.equal(video[:, :, :6], given) and not torch.allclose(video[:, :, 6:], other[:, :, 6:], atol=1e-3)


def test_reuse_is_taken_back_where_a_neighbour_computes(transformer: WanTransformer) -> None:
    """One forward answers for all, so a chunk that would have reused is computed with the others, and the run says so;
    ticks in which all reuse have no forward."""
    denoiser, noise = WanDenoiser(transformer, {0: (text(),)}), noise_of(18)
    settings = settings_of(LONG, 18, policy=Interval(interval=2, warmup_steps=1))
    events: list[object] = []
    generate(denoiser, settings, noise, observe=events.append)
    steps = [event for event in events if isinstance(event, StepTaken)]
    by_tick = {tick: {one.action for one in steps if one.tick == tick} for tick in range(9)}
    assert all(len(actions) == 1 for actions in by_tick.values())
    assert "window pass" in {one.reason for one in steps}
    assert [one.action == "compute" for one in steps] == list(foretold(settings))


def test_each_step_is_counted_against_what_it_sees() -> None:
    shape, chunk, chunks = WanShape(dim=1536, ffn_dim=8960, layers=30), 3 * 1560, 12
    cost = count(shape, [settings_of(LONG, 36)], 1560, 1)
    assert cost.kv_tokens == (7 + 4) * chunk
    expected = sum(shape.forward(chunk, min(one + 1, 7) * chunk) for one in range(chunks - 1))  # the clean passes
    for tick in range(chunks + 3):
        work = range(max(0, tick - 3), min(chunks - 1, tick) + 1)
        expected += len(work) * shape.forward(chunk, min(work.stop, 7) * chunk)
    assert cost.flops == pytest.approx(expected, rel=1e-9)


def test_the_dry_run_goes_through_it(transformer: WanTransformer) -> None:
    """The largest forward holds four chunks at once: more than one chunk behind the same history takes."""

    def build(device: str) -> tuple[WanTransformer, WanDenoiser]:
        with torch.device(device):
            made = WanTransformer(transformer.config).eval().requires_grad_(False)
            return made, WanDenoiser(made, {0: [torch.empty(1, 4, 16)]})

    joint, causal = settings_of(LONG, 36), settings_of(LONG, 36, attention="block-causal", joint_frames=0)
    assert largest_forward(build, joint, (1, 16, 8, 8)) > 2 * largest_forward(build, causal, (1, 16, 8, 8))


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(SettingError, match="residual.*joint"):
        settings_of(LONG, 18, policy=Interval(interval=2, warmup_steps=1), quantity=Residual())
    with pytest.raises(SettingError, match="sparse"):
        settings_of(LONG, 18, sparse=SparseSettings(METHODS["xattention"]()))
    gap = (Tick(0, (ChunkStep(0, 0),)), Tick(1, (ChunkStep(1, 0),)), Tick(2, (ChunkStep(0, 1), ChunkStep(1, 1))))
    with pytest.raises(SettingError, match="joint_frames.*at least 15"):
        settings_of(LONG, 18, joint_frames=12)
    with pytest.raises(SettingError, match="joint_frames.*block-causal"):
        settings_of(LONG, 18, attention="block-causal")
    plan = Plan("odd", (Chunk(0, 0, 3), Chunk(1, 3, 3)), 2, gap)
    with pytest.raises(SettingError, match=r"plan.ticks\[1\].*every active chunk"):
        EngineSettings(plan, RELEASED["StreamDiffusionV2 1.3B, video to video"].schedule, attention="joint")


def test_models_that_know_no_joint_attention_say_so(transformer: WanTransformer) -> None:
    with pytest.raises(SettingError, match="MAGI-1"):
        MagiDenoiser.joint(None, (), None)  # type: ignore[arg-type]
    denoiser = WanDenoiser(transformer, {0: (text(),)}, shots=Shots((2,), 8))
    with pytest.raises(SettingError, match="shots"):
        generate(denoiser, settings_of(LONG, 18), noise_of(18))


def test_observers_see_every_chunk(transformer: WanTransformer) -> None:
    denoiser = DummyDenoiser()
    generate(denoiser, settings_of(LONG, 18, kv=KVSettings()), noise_of(18))
    assert sorted(set(denoiser.calls)) == sorted(
        {(chunk, step) for chunk in range(6) for step in range(4)} | {(chunk, 4) for chunk in range(5)}
    )
