"""MAGI-1 through the engine: against a plain loop written from the definition, and its event tables."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from flowcache_core.engine import EngineSettings, generate
from flowcache_core.errors import SettingError
from flowcache_core.kv.importance_redundancy import ImportanceRedundancy
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.common.cached_attention import CachedAttention, attending, attending_alone
from flowcache_core.models.magi.config import MagiConfig
from flowcache_core.models.magi.denoiser import MagiDenoiser
from flowcache_core.models.magi.guidance import GuidanceScales, visible_to_clean
from flowcache_core.models.magi.layers import attend_grouped
from flowcache_core.models.magi.transformer import MagiTransformer
from flowcache_core.models.magi.vae import LATENT_SCALE, MagiVAE, MagiVAEConfig, Tiling
from flowcache_core.plan import window
from flowcache_core.report.events import CacheCompressed, CachePass, StepTaken
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.distance import PatchDistance
from flowcache_core.reuse.forecast import Forecast
from flowcache_core.reuse.quantity import Increment, Residual, Velocity
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.schedule import magi, magi_distill_times, shifted
from flowcache_core.video.magi import MagiSettings, captions_by_chunk, generate_video

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
    plan = window(FRAMES * chunks, FRAMES, steps, 4, prefix_frames)
    values = {"plan": plan, "schedule": magi(steps), "clean_pass": True, "clean_timestep": 0.9999}
    return EngineSettings(**(values | changes))


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


SCALES = GuidanceScales(text=(3.0, 3.0, 2.0, 0.0, 0.0))
VARIANTS = {
    "distilled": ({"distill": True}, {"nearly_clean": False}),
    "distilled-nearly-clean": ({"distill": True, "nearly_clean": True}, {}),
    "twelve-steps": ({"distill": True, "nearly_clean": True, "steps": 12}, {}),
    "guided": ({"scales": SCALES}, {}),
    "no-clean-pass": ({"distill": True, "clean_pass": False}, {"nearly_clean": False}),
    "ranges": ({"distill": True, "ranges": (4, 3, 2, 2)}, {"nearly_clean": False, "ranges": (4, 3, 2, 2)}),
    "clean-range": (
        {"distill": True, "ranges": (4, 3, 2, 2), "clean_range": 2},
        {"nearly_clean": False, "ranges": (4, 3, 2, 2), "clean_range": 2},
    ),
    "guided-four-steps": ({"scales": SCALES, "steps": 4}, {}),
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
    settings = engine(prefix_frames=prefix_frames, steps=plain.steps, clean_pass=plain.clean_pass)
    ours = generate(denoiser_of(model, plain, options), settings, noise(), prefix=prefix)
    assert_close(ours, plain.run(noise(), prefix))
    if prefix is not None:
        assert torch.equal(ours[:, :, :prefix_frames], prefix)


def test_the_variants_are_not_the_same(model):
    results = [Plain(model, **loop).run(noise()) for loop, _ in VARIANTS.values()]
    for i, one in enumerate(results):
        for other in results[i + 1 :]:
            assert (one - other).abs().max() > 1e-2


def test_two_videos_at_once_are_two_runs(model):
    both = noise(batch=2)
    settings = engine()
    together = generate(distilled(model), settings, both)
    for item in range(2):
        assert_close(together[item : item + 1], generate(distilled(model), settings, both[item : item + 1]))


# -- prefix -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "chunks", "held", "ticks"), [(0, 0, 0, 48), (1, 0, 1, 48), (6, 1, 0, 40), (8, 1, 2, 40)]
)
def test_a_prefix_of_no_whole_chunks_is_held_in_the_first_new_chunk(prefix, chunks, held, ticks):
    plan = window(18, 6, 32, 4, prefix)
    assert (plan.prefix_chunks, plan.held_frames, plan.prefix_frames) == (chunks, held, prefix)
    assert [chunk.first_frame for chunk in plan.chunks] == [0, 6, 12]
    assert len(plan.ticks) == ticks


# -- K/V budget: when and what is compressed (C = 10) -----------------------------------------------------------------


def ten_chunks(model, budget, *, prefix_frames=0, **changes):
    """Events and latents of 10 chunks of 4 steps, which is one tick per stage; nearly-clean and clean pass on."""
    events = []
    kv = KVSettings(budget=budget, compressor=None if budget is None else ImportanceRedundancy())
    settings = engine(10, prefix_frames, steps=4, kv=kv, **changes)
    prefix = 0.5 * noise(10)[:, :, :prefix_frames] if prefix_frames else None
    latents = generate(distilled(model, 4), settings, noise(10), prefix=prefix, observe=events.append)
    return events, latents


CHUNK_TOKENS = FRAMES * 4


def contexts(events) -> list[list[int]]:
    """Chunks of context of every chunk step, tick by tick."""
    rows: dict[int, list[int]] = {}
    for event in events:
        if isinstance(event, StepTaken):
            rows.setdefault(event.tick, []).append(event.context_tokens // CHUNK_TOKENS)
    return [rows[tick] for tick in sorted(rows)]


@pytest.mark.parametrize(
    ("total", "before", "steady", "tail"),
    [
        (5, 2, [2, 3, 4, 5], [[3, 4, 5], [4, 5], [5]]),
        (6, 3, [3, 4, 5, 6], [[4, 5, 6], [5, 6], [6]]),
    ],
)
def test_compression_events_and_contexts(model, total, before, steady, tail):
    events, latents = ten_chunks(model, total - 4)
    fired = [(e.tick, e.chunk, e.tokens_before, e.tokens_after) for e in events if isinstance(e, CacheCompressed)]
    sizes = (before * CHUNK_TOKENS, (before - 1) * CHUNK_TOKENS)
    assert fired == [(chunk, chunk, *sizes) for chunk in range(total, 10)]
    rows = contexts(events)
    assert rows[:4] == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]
    assert rows[total - 1 : 10] == [steady] * (11 - total)
    assert rows[10:] == tail
    # Nothing was compressed before the chunk of the first event began: what was finished by then is as without.
    whole = ten_chunks(model, None)[1]
    same = FRAMES * (total - 4)
    assert torch.equal(latents[:, :, :same], whole[:, :, :same])
    assert latents.isfinite().all() and not torch.allclose(latents, whole, atol=1e-3)


def test_compression_counts_given_chunks_as_clean(model):
    """Chunks 0 to 2 are given; the fork this follows fails at the first event then."""
    events, latents = ten_chunks(model, 1, prefix_frames=3 * FRAMES)
    fired = [(e.chunk, e.tokens_before // CHUNK_TOKENS) for e in events if isinstance(e, CacheCompressed)]
    assert fired == [(5, 3), (6, 2), (7, 2), (8, 2), (9, 2)]
    assert [e.kind for e in events if isinstance(e, CachePass)] == ["prefix"] * 3 + ["clean"] * 6
    assert torch.equal(latents[:, :, : 3 * FRAMES], 0.5 * noise(10)[:, :, : 3 * FRAMES])


@pytest.fixture
def alone(monkeypatch) -> list[tuple[int, int]]:
    """Place (in chunks) and tokens of every forward of a chunk that sees itself alone."""
    found = []
    forward = MagiTransformer.forward_chunk

    def spy(self, x, *args, first_frame, attention, **options):
        if not isinstance(attention, CachedAttention):
            found.append((first_frame // FRAMES, x.shape[2] * self.tokens_per_frame(x)))
        return forward(self, x, *args, first_frame=first_frame, attention=attention, **options)

    monkeypatch.setattr(MagiTransformer, "forward_chunk", spy)
    return found


def test_the_nearly_clean_pass_sees_exactly_its_chunk_after_compressions_too(model, alone):
    ten_chunks(model, 1)
    # Once per chunk with one step past t = 0.3, at the place behind the window.
    assert alone == [(min(10, chunk + 4), CHUNK_TOKENS) for chunk in range(10)]


def test_only_the_oldest_chunk_of_a_wider_window_has_a_nearly_clean_pass(model, alone):
    """Two of eight steps are past t = 0.3; in both of them a chunk is the oldest only at the start of the video."""
    plan = window(6 * FRAMES, FRAMES, 8, 8)
    generate(distilled(model), engine(plan=plan), noise())
    assert [place for place, _ in alone] == [6, 6, 6, 6, 6, 6, 6]


def test_guidance_runs_a_chunk_alone_only_where_it_counts(model, alone):
    """Its weight is 0 past t = 0.3, in the last two of eight steps; it stands at the beginning of the video."""
    generate(MagiDenoiser(model, captions(), guidance=SCALES), engine(2), noise(2))
    assert alone == [(0, CHUNK_TOKENS)] * (2 * 6)


def test_a_budget_at_least_as_long_as_the_video_changes_nothing(model):
    assert torch.equal(ten_chunks(model, 6)[1], ten_chunks(model, None)[1])


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.float8_e4m3fn])
def test_published_ranges_need_one_chunk_beside_the_window(model, guided, dtype):
    """5, 4, 3, 2 chunks are seen at most: the newest chunk of history is enough, whatever the video's length."""
    options = {"ranges": (5, 4, 3, 2)}
    denoiser = MagiDenoiser(model, captions(), guidance=SCALES, **options) if guided else distilled(model, **options)
    whole = generate(denoiser, engine(kv=KVSettings(dtype=dtype)), noise())
    kv = KVSettings(budget=1, compressor=Recent(), dtype=dtype)
    assert torch.equal(generate(denoiser, engine(kv=kv), noise()), whole)


@pytest.mark.parametrize("guided", [False, True])
def test_a_second_run_and_one_after_an_interrupt_are_as_the_first(model, guided):
    denoiser = MagiDenoiser(model, captions(), guidance=SCALES) if guided else distilled(model)
    policy = Chunkwise(warmup_steps=2, threshold=0.5, distance=PatchDistance())
    settings = engine(prefix_frames=3, policy=policy, kv=KVSettings(budget=1, compressor=ImportanceRedundancy()))
    prefix = noise()[:, :, -3:]
    first = generate(denoiser, settings, noise(), prefix=prefix)

    def stop(event):
        if isinstance(event, StepTaken) and event.tick == 6:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        generate(denoiser, settings, noise(), prefix=prefix, observe=stop)
    assert torch.equal(generate(denoiser, settings, noise(), prefix=prefix), first)


# -- reuse ------------------------------------------------------------------------------------------------------------


def computed_steps(denoiser, policy, chunks: int = 5) -> dict[int, list[int]]:
    events = []
    generate(denoiser, engine(chunks, policy=policy, quantity=Increment()), noise(chunks), observe=events.append)
    table: dict[int, list[int]] = {}
    for event in events:
        if isinstance(event, StepTaken) and event.action == "compute":
            table.setdefault(event.chunk, []).append(event.step)
    return table


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("always_last", [False, True])
def test_without_a_limit_every_chunk_computes_its_warmup_alone(model, guided, always_last):
    denoiser = MagiDenoiser(model, captions(), guidance=SCALES) if guided else distilled(model)
    policy = Chunkwise(threshold=1e9, warmup_steps=5, distance=PatchDistance(), always_last=always_last)
    expected = [0, 1, 2, 3, 4, 7] if always_last else [0, 1, 2, 3, 4]
    assert computed_steps(denoiser, policy) == {chunk: expected for chunk in range(5)}


@pytest.mark.parametrize("guided", [False, True])
def test_threshold_0_is_no_reuse(model, guided):
    denoiser = MagiDenoiser(model, captions(), guidance=SCALES) if guided else distilled(model)
    policy = Chunkwise(threshold=0.0, distance=PatchDistance())
    assert torch.equal(generate(denoiser, engine(policy=policy), noise()), generate(denoiser, engine(), noise()))


def test_a_reused_step_runs_no_forward(model, monkeypatch):
    calls = []
    forward = MagiTransformer.forward_chunk

    def spy(self, x, t, *args, **options):
        calls.append(round(t[0].item(), 4))
        return forward(self, x, t, *args, **options)

    monkeypatch.setattr(MagiTransformer, "forward_chunk", spy)
    generate(distilled(model), engine(2, policy=StaticSchedule(computed=(0, 5))), noise(2))
    t = [round(value, 4) for value in magi(STEPS).timesteps]
    # Steps 0, 5 and 7 of two chunks, the last of them with its nearly-clean pass, and one clean pass.
    assert sorted(calls) == sorted(2 * [t[0], t[5], t[7], t[7]] + [0.9999])


def test_the_distance_is_relative_l1_of_the_patch_embedding(model):
    events = []
    policy = Chunkwise(threshold=1e9, warmup_steps=2, distance=PatchDistance())
    generate(distilled(model), engine(1, policy=policy), noise(1), observe=events.append)
    plain = Plain(model, distill=True)
    x, t = noise(1), plain.times()
    moved = x + plain.forward(x, t[0], captions()[0], {}, 0, 1) * (t[1] - t[0])
    before, now = model.patch_tokens(x), model.patch_tokens(moved)
    first = next(event for event in events if isinstance(event, StepTaken) and event.step == 1)
    assert first.distance == pytest.approx(((now - before).abs().mean() / before.abs().mean()).item(), rel=1e-4)


@pytest.mark.parametrize("quantity", [Velocity(), Increment(), Forecast(order=1), Residual()])
def test_reuse_with_guidance(model, quantity):
    """Steps 0 and 1 are computed; the rest follows from them under the scales and step sizes of now."""
    policy = StaticSchedule(warmup_steps=2, always_last=False, computed=(0, 1))
    denoiser = MagiDenoiser(model, captions(), guidance=SCALES)
    ours = generate(denoiser, engine(1, policy=policy, quantity=quantity), noise(1))
    plain = Plain(model, scales=SCALES)
    null = (model.y_embedder.null_caption_embedding[None], (torch.arange(60) < 50).float()[None])
    x, t, velocities, residuals, step = noise(1), plain.times(), [], [], torch.zeros(())
    for k in range(STEPS):
        a, b = SCALES.at(t[k])
        if k < 2:
            text = plain.forward(x, t[k], captions()[0], {}, 0, 1)
            previous, alone = (plain.forward(x, t[k], null, {}, 0, 1, dropped=True) for _ in range(2))
            velocities.append((alone, previous, text))
        used = velocities[-1]
        if k >= 2 and quantity.name == "forecast":
            share = (t[k] - t[0]) / (t[1] - t[0])
            used = tuple(old + share * (new - old) for old, new in zip(*velocities, strict=True))
        if k >= 2 and quantity.name == "residual":
            used = tuple(model._head(model.patch_tokens(x) + residual, x) for residual in residuals)
        v = (1 - a) * used[0] + (a - b) * used[1] + b * used[2]
        if k < 2 or quantity.name != "increment":
            step = v * (t[k + 1] - t[k])
        if k == 1:
            residuals = [
                stack_residual(model, x, t[k], caption, dropped)
                for caption, dropped in ((null, True), (null, True), (captions()[0], False))
            ]
        x = x + step
    assert_close(ours, x)


def stack_residual(model, x, t, caption, dropped) -> Tensor:
    options = {
        "first_frame": 0,
        "attention": attending_alone(attend_grouped),
        "dropped": dropped,
        "return_residual": True,
    }
    return model.forward_chunk(x, torch.tensor([t]), *caption, **options)[1]


def test_a_residual_past_the_guidance_has_all_branches(model):
    """From t = 0.3 on the forward alone is not run; a reused residual must not miss it."""
    policy = StaticSchedule(warmup_steps=7, computed=(0,), always_last=False)
    denoiser = MagiDenoiser(model, captions(), guidance=SCALES)
    result = generate(denoiser, engine(2, policy=policy, quantity=Residual()), noise(2))
    assert result.isfinite().all()
    assert (result - generate(denoiser, engine(2), noise(2))).abs().max() > 0


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_what_the_denoiser_refuses(model):
    with pytest.raises(SettingError, match=r"captions: got \[1\], accepted: start chunks, 0 among them"):
        MagiDenoiser(model, {1: captions()[0]})
    with pytest.raises(SettingError, match="distilled weights .* take no guidance"):
        MagiDenoiser(model, captions(), guidance=SCALES, step_times=(4.0,))
    with pytest.raises(SettingError, match="timestep: got 1000"):
        generate(distilled(model), engine(schedule=shifted(STEPS, 3.0)), noise())
    plan = window(4, 2, 8)
    with pytest.raises(SettingError, match="attention: got 'bidirectional', accepted: block-causal"):
        generate(distilled(model), EngineSettings(plan, magi(8), attention="bidirectional"), noise(2))
    with pytest.raises(SettingError, match="K/V ranges"):
        generate(distilled(model, ranges=(5, 4, 3)), engine(), noise())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 30}, r"steps: got 30, accepted: a multiple of window_chunks \(4\)"),
        ({"steps": 24}, "steps: got 24, accepted: 8, 12, 16, 32, 64 with distilled weights"),
        ({"steps": 12, "variant": "base"}, "steps: got 12, accepted: another number: 12 steps are of two lengths"),
        ({"variant": "quantised"}, "variant: got 'quantised', accepted: distilled or base"),
        ({"shortcut_mode": "4,4,4"}, "shortcut_mode: got '4,4,4', accepted: 8,16,16 or 16,16,8"),
        ({"height": 712}, "height: got 712, accepted: a multiple of 16, such as 704"),
        ({"width": 0}, "width: got 0, accepted: a whole number >= 1"),
        ({"frames": 0}, "frames: got 0"),
        ({"window_chunks": 0}, "window_chunks: got 0, accepted: a whole number >= 1"),
        ({"chunk_frames": 0}, "chunk_frames: got 0"),
        ({"ranges": (5, 4, 3)}, r"ranges: got \(5, 4, 3\), accepted: a number of entries that divides the 64 steps"),
        ({"ranges": (5, 0)}, "ranges: got 0, accepted: a whole number >= 1"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(SettingError, match=message):
        MagiSettings(**changes)


def test_a_budget_below_one_chunk_says_the_least():
    with pytest.raises(SettingError, match="budget: got 0.5, accepted: a number >= 1"):
        MagiSettings(kv=KVSettings(budget=0.5))


def test_settings_of_presets():
    released = MagiSettings.of_preset("magi-1-4.5b", "vanilla")
    assert released == MagiSettings()
    plan = released.plan()
    assert (plan.frames, len(plan.chunks), len(plan.ticks), plan.max_active) == (60, 10, 208, 4)
    fast = MagiSettings.of_preset("magi-1-4.5b", "reference-fast", frames=96)
    assert (fast.nearly_clean, fast.clean_pass, fast.frames) == (False, False, 96)
    assert fast.policy == Chunkwise(
        threshold=0.015,
        distance=PatchDistance(),
        inclusive=False,
        warmup_steps=5,
        always_last=False,
        last_tick=True,
    )
    assert fast.engine().clean_timestep == 0.9999 and not fast.engine().clean_pass
    ours = MagiSettings.of_preset("magi-1-4.5b", "fast")
    assert ours.nearly_clean and ours.clean_pass
    assert ours.policy.together and (len(ours.policy.first), len(ours.policy.computed)) == (37, 19)


@pytest.mark.parametrize("preset", ["slow", "fast"])
def test_a_preset_is_for_its_number_of_steps(preset):
    for changes in ({"steps": 32}, {"steps": 128, "variant": "base"}):
        given = f"preset {preset}: got '{changes['steps']} steps', accepted: 64 steps"
        with pytest.raises(SettingError, match=given) as caught:
            MagiSettings.of_preset("magi-1-4.5b", preset, **changes)
        assert "shift" not in str(caught.value)
    own = MagiSettings.of_preset("magi-1-4.5b", preset, steps=32, policy=Chunkwise())
    assert (own.steps, own.policy) == (32, Chunkwise())
    assert MagiSettings.of_preset("magi-1-4.5b", "reference-" + preset, steps=16).steps == 16
    with pytest.raises(SettingError, match="model: got 'skyreels-v2-1.3b-540p', accepted: magi-1-4.5b"):
        MagiSettings.of_preset("skyreels-v2-1.3b-540p", preset)


def test_frames_become_whole_chunks_behind_the_prefix():
    settings = MagiSettings(frames=50)
    assert [settings.plan(prefix).frames for prefix in (0, 1, 5, 6)] == [18, 18, 18, 24]
    assert [settings.new_chunks(prefix) for prefix in (0, 1, 6)] == [3, 3, 3]


def test_a_clean_chunk_sees_itself_alone_beside_ranges():
    """As all released configurations have it; finished chunks see everything where there are no ranges."""
    seen = [visible_to_clean(chunk, (5, 4, 3, 2), given=given) for chunk in (0, 9) for given in (True, False)]
    assert seen == [range(0, 1), range(0, 1), range(9, 10), range(9, 10)]
    assert visible_to_clean(9, (5, 4, 3, 2), 2, given=False) == range(8, 10)
    assert visible_to_clean(9, (), given=False) == visible_to_clean(9, (), 1, given=False) == range(0, 10)
    assert visible_to_clean(9, (), given=True) == range(2, 10)
    assert visible_to_clean(9, (), 3, given=True) == range(7, 10)
    with pytest.raises(SettingError, match="clean_range: got 0, accepted: a whole number >= 1"):
        MagiSettings(clean_range=0)


def test_variants_make_their_denoisers(model):
    base = MagiSettings(steps=16, variant="base", guidance=SCALES, ranges=(5, 4, 3, 2), clean_range=2)
    denoiser = base.denoiser(model, captions())
    assert (denoiser.branches, denoiser.step_times, denoiser.guidance) == (3, (), SCALES)
    assert (denoiser.ranges, denoiser.clean_range) == ((5, 4, 3, 2), 2) and denoiser.kv_spec(noise()).branches == 2
    twelve = MagiSettings(steps=12, shortcut_mode="16,16,8").denoiser(model, captions())
    assert (twelve.branches, twelve.step_times) == (1, (8.0, 8.0, 4.0) * 4)


# -- a whole video ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae() -> MagiVAE:
    vae = MagiVAE(MagiVAEConfig(video_size=32, video_length=8, embed_dim=256, depth=1, num_heads=4))
    draw = torch.Generator().manual_seed(9)
    for parameter in vae.parameters():
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=draw)
    return vae.eval().requires_grad_(False)


SMALL = MagiSettings(frames=20, height=32, width=32, steps=8, chunk_frames=FRAMES)
TILES = Tiling(pixels=32, frames=8)


def stacked(chunks: int) -> tuple[Tensor, Tensor]:
    found = captions()
    return torch.cat([found[c][0] for c in range(chunks)]), torch.cat([found[c][1] for c in range(chunks)])


def test_a_video_is_its_finished_chunks(model, vae):
    order: list[object] = []
    video = generate_video(
        model,
        vae,
        stacked(3),
        SMALL,
        seed=4,
        tiling=TILES,
        observe=lambda event: order.append(event.tick) if isinstance(event, StepTaken) else None,
        on_frames=order.append,
    )
    pieces = [(place, piece) for place, piece in enumerate(order) if isinstance(piece, Tensor)]
    assert [piece.shape[2] for _, piece in pieces] == [8, 8, 4]
    assert torch.equal(torch.cat([piece for _, piece in pieces], 2), video.pixels)
    assert video.pixels.shape == (1, 3, 20, 32, 32) and video.latents.shape == (1, 16, 6, 4, 4)
    # Handed out while later chunks still run: two ticks per stage, the first chunk is done after tick 7 of 12.
    assert [order[place - 1] for place, _ in pieces] == [7, 9, 11]
    whole = torch.cat([vae.decode(part / LATENT_SCALE, TILES) for part in video.latents.split(FRAMES, 2)], 2)
    assert torch.equal(video.pixels, whole[:, :, :20])
    assert torch.equal(generate_video(model, vae, stacked(3), SMALL, seed=4, tiling=TILES).pixels, video.pixels)
    other = generate_video(model, vae, stacked(3), SMALL, seed=5, tiling=TILES).pixels
    assert (other - video.pixels).abs().max() > 1e-3


@pytest.mark.parametrize(("frames", "chunks", "given", "new"), [(1, 3, 1, 24), (8, 3, 2, 20), (12, 3, 3, 24)])
def test_an_image_or_a_video_goes_on(model, vae, frames, chunks, given, new):
    """What is held of the prefix comes out with the first new chunk, whole given chunks do not."""
    prefix = torch.rand(1, 3, frames, 32, 32, generator=torch.Generator().manual_seed(6)) * 2 - 1
    video = generate_video(model, vae, stacked(chunks), SMALL, prefix=prefix, tiling=TILES)
    assert video.pixels.shape[2] == new
    assert torch.equal(video.latents[:, :, :given], vae.encode(prefix, TILES) * LATENT_SCALE)
    if given % FRAMES:
        first = video.latents[:, :, given - given % FRAMES :][:, :, :FRAMES]
        assert torch.equal(video.pixels[:, :, :8], vae.decode(first / LATENT_SCALE, TILES))


def test_captions_belong_to_new_chunks(model):
    plan = SMALL.plan(2 * FRAMES)
    found = captions_by_chunk(stacked(3), plan)
    assert sorted(found) == [0, 2, 3, 4]
    assert all(torch.equal(found[2 + i][0], captions()[i][0]) for i in range(3))
    assert sorted(captions_by_chunk(stacked(1), plan)) == [0, 2]
    with pytest.raises(SettingError, match="captions: got 2, accepted: 1, or one for each of the 3 new chunks"):
        captions_by_chunk(stacked(2), plan)


@pytest.mark.parametrize("shape", [(1, 3, 6, 32, 32), (1, 3, 4, 32, 16), (2, 3, 4, 32, 32), (3, 4, 32, 32)])
def test_a_prefix_that_does_not_fit(model, vae, shape):
    with pytest.raises(SettingError, match=r"prefix: got .* accepted: \[1, 3, 1 or a multiple of 4, 32, 32\]"):
        generate_video(model, vae, stacked(1), SMALL, prefix=torch.zeros(shape))
