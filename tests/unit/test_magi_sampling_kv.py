"""MAGI-1's K/V budget: when and what is compressed."""

from __future__ import annotations

import pytest
import torch
from magi_plain import SCALES
from magi_sampled import FRAMES, captions, distilled, engine, noise, random_model

from flowcache_core.engine import generate
from flowcache_core.kv.importance_redundancy import ImportanceRedundancy
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.common.cached_attention import CachedAttention
from flowcache_core.models.magi.denoiser import MagiDenoiser
from flowcache_core.models.magi.transformer import MagiTransformer
from flowcache_core.plan import window
from flowcache_core.report.events import CacheCompressed, CachePass, StepTaken
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.distance import PatchDistance


@pytest.fixture(scope="module")
def model() -> MagiTransformer:
    return random_model()


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
