"""SkyReels-V2 sampling: against the published loop written out naively, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from torch import Tensor

from flowcache_core.errors import SettingError
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.models.wan.vae import WanVAE
from flowcache_core.models.wan.vae_layers import WanVAEConfig
from flowcache_core.noise import conditioning_seed, seeded_noise, window_noise
from flowcache_core.report.events import CachePass, ChunkFinished, Event, RunStarted, StepTaken, WindowPass
from flowcache_core.reuse.interval import Interval
from flowcache_core.video.skyreels import SkyReelsSettings, generate_video

TINY = WanConfig(dim=48, ffn_dim=64, num_layers=2, num_heads=3, text_dim=20, freq_dim=32, fps_embedding=True)
# 6 latent frames a window, chunks of 2, overlap of one chunk; 13 latent frames need three windows, the last one short
ONE = SkyReelsSettings(
    frames=21, height=32, width=32, steps=6, guidance=4.0, chunk_frames=2, ar_step=2, base_frames=21, overlap_frames=5
)
THREE = replace(ONE, frames=46)
CHUNK, BASE = ONE.chunk_frames, 6
Events = list[tuple[int, Event]]


@pytest.fixture(scope="module")
def model() -> WanTransformer:
    torch.manual_seed(0)
    made = WanTransformer(TINY).requires_grad_(False)
    for parameter in made.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return made


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    torch.manual_seed(1)
    return WanVAE(WanVAEConfig(dim=8)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def prompts() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(2)
    return torch.randn(1, 5, 20, generator=draw), torch.randn(1, 5, 20, generator=draw)


# -- the published loop, written out -----------------------------------------------------------------------------------


def timestep_list(steps: int, shift: float) -> tuple[list[float], list[int]]:
    even = np.linspace(0.999, 0, steps + 1)[:-1]
    sigmas = shift * even / (1 + (shift - 1) * even)
    return list(sigmas), [int(t) for t in 1000 * sigmas]


def rows(blocks: int, prefix: int, steps: int, ar_step: int) -> list[tuple[list[int], list[bool]]]:
    """Counters (0 waiting, 1..N at step counter - 1, N + 1 done) and which blocks move, iteration by iteration."""
    before = [steps + 1 if block < prefix else 0 for block in range(blocks)]
    table = []
    while any(counter < steps for counter in before):
        now: list[int] = []
        for block in range(blocks):
            free = block == 0 or before[block - 1] >= steps
            counter = before[block] + 1 if free else now[block - 1] - ar_step
            now.append(min(max(counter, 0), steps + 1))
        table.append((now, [a != b and a != steps + 1 for a, b in zip(now, before)]))
        before = now
    return table


def frame_scheduler(sigmas: Sequence[float]) -> UniPCMultistepScheduler:
    made = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2, solver_type="bh2", predict_x0=True
    )
    made.set_timesteps(sigmas=np.array(sigmas))
    return made


def published_window(
    model: WanTransformer,
    prompts: Sequence[Tensor],
    s: SkyReelsSettings,
    noise: Tensor,
    prefix: Tensor | None,
    seed: int,
) -> Tensor:
    latents, frames = noise.clone(), noise.shape[2]
    known = 0 if prefix is None else prefix.shape[2]
    if prefix is not None:
        latents[:, :, :known] = prefix
    sigmas, times = timestep_list(s.steps, s.shift)
    template = [999, *times, 0]
    block_of = [frame // CHUNK for frame in range(frames)]
    schedulers = [frame_scheduler(sigmas) for _ in range(frames)]
    draw = seeded_noise(seed)
    level = s.conditioning_noise / 1000
    seen, seen_at = latents.clone(), torch.full((1, frames), -1.0)
    for tick, (counters, moves) in enumerate(rows(block_of[-1] + 1, known // CHUNK, s.steps, s.ar_step)):
        t = torch.tensor([[float(template[counters[block]]) for block in block_of]])
        x = latents.clone()
        for start in range(0, known, CHUNK):
            clean = latents[:, :, start : start + CHUNK]
            x[:, :, start : start + CHUNK] = clean * (1 - level) + level * draw(start // CHUNK, tick, clean)
            t[:, start : start + CHUNK] = s.conditioning_noise
        moving = [frame for frame in range(frames) if moves[block_of[frame]]]
        chunks = None
        if s.attention == "block-causal":
            # What a block's K/V say is what the block held when it was computed last, the prefix in the first pass.
            news = moving if tick else [*range(known), *moving]
            seen[:, :, news], seen_at[:, news] = x[:, :, news], t[:, news]
            end = moving[-1] + 1
            x, t = seen[:, :, :end], seen_at[:, :end]
            chunks = [min(CHUNK, end - start) for start in range(0, end, CHUNK)]
        out = [model(x, t, text, chunk_frames=chunks, fps=s.fps) for text in prompts]
        v = out[0] if s.guidance <= 1 else out[1] + s.guidance * (out[0] - out[1])
        for frame in moving:
            scheduler = schedulers[frame]
            step = counters[block_of[frame]] - 1
            before = latents[:, :, frame].clone()
            latents[:, :, frame] = scheduler.step(v[:, :, frame], scheduler.timesteps[step], before)[0]
    return latents


def published_video(
    model: WanTransformer, vae: WanVAE, prompts: Sequence[Tensor], s: SkyReelsSettings, seed: int
) -> tuple[Tensor, list[Tensor]]:
    """Windows with the last pixel frames of the one before decoded and encoded again."""
    total = -(-(s.frames - 1) // 4) + 1
    overlap, made, windows = s.overlap_frames // 4 + 1, 0, []
    video = torch.empty(1, 3, 0, s.height, s.width)
    while made < total:
        first = made == 0
        frames = min(total - made + (0 if first else overlap), BASE)
        number = len(windows)
        noise = window_noise(seed, number, (1, 16, frames, s.height // 8, s.width // 8))
        prefix = None if first else vae.encode(video[:, :, -s.overlap_frames :])
        windows.append(published_window(model, prompts, s, noise, prefix, conditioning_seed(seed, number)))
        decoded = vae.decode(windows[-1], frames_at_once=None)
        video = torch.cat([video, decoded[:, :, 0 if first else s.overlap_frames :]], 2)
        made += frames - (0 if first else overlap)
    return video[:, :, : s.frames], windows


@pytest.mark.parametrize("attention", ["bidirectional", "block-causal"])
@pytest.mark.parametrize(
    "settings",
    [
        ONE,
        THREE,
        replace(ONE, ar_step=0),
        replace(ONE, guidance=1.0),
        replace(THREE, frames=29, conditioning_noise=0.0),
    ],
    ids=["one window", "three windows", "synchronous", "one branch", "clean overlap"],
)
@torch.no_grad()
def test_final_latents_and_video_are_those_of_the_published_loop(model, vae, prompts, settings, attention):
    settings = replace(settings, attention=attention)
    given = prompts if settings.guidance > 1 else prompts[:1]
    ours = generate_video(model, vae, given, settings, seed=5)
    video, windows = published_video(model, vae, given, settings, seed=5)
    assert [w.shape for w in ours.latents] == [w.shape for w in windows]
    for made, expected in zip(ours.latents, windows):
        assert (made - expected).abs().max() < 1e-4
    assert ours.pixels.shape == video.shape == (1, 3, settings.frames, 32, 32)
    assert (ours.pixels - video).abs().max() < 1e-4


def test_published_rows_of_both_windows():
    first, second = rows(5, 0, 50, 5), rows(5, 1, 50, 5)
    assert (len(first), len(second)) == (70, 65)
    times = [999, *timestep_list(50, 8.0)[1], 0]
    assert [times[c] for c in first[50][0]] == [0, 470, 666, 773, 841]
    for block in range(1, 5):
        assert [i for i, (_, moves) in enumerate(second) if moves[block]] == list(range(5 * block - 5, 5 * block + 45))


# -- what the run tells -----------------------------------------------------------------------------------------------


def events_of(model, vae, prompts, settings, **options) -> tuple[Tensor, Events]:
    seen: Events = []
    result = generate_video(model, vae, prompts, settings, observe=lambda *event: seen.append(event), **options)
    return result.pixels, seen


def test_start_events_name_the_attention_that_ran(model, vae, prompts):
    quick = replace(THREE, frames=29, steps=2, ar_step=1)
    _, causal = events_of(model, vae, prompts, quick)
    _, whole = events_of(model, vae, prompts, replace(quick, attention="bidirectional"))
    for events, name in ((causal, "block-causal"), (whole, "bidirectional")):
        assert [(w, e.attention) for w, e in events if isinstance(e, RunStarted)] == [(0, name), (1, name)]
    assert [e.kind for _, e in causal if isinstance(e, CachePass)] == ["prefix"]
    assert sum(isinstance(e, WindowPass) for _, e in whole) == 4 + 2  # ticks of 3 chunks, and of 1 beside the prefix


def test_frames_arrive_while_later_chunks_still_run(model, vae, prompts):
    order: list[str] = []

    def observe(window: int, event: Event) -> None:
        if isinstance(event, StepTaken):
            order.append(f"step of chunk {event.chunk}")

    pieces: list[Tensor] = []

    def on_frames(frames: Tensor) -> None:
        pieces.append(frames)
        order.append(f"{frames.shape[2]} frames")

    result = generate_video(model, vae, prompts, replace(ONE, frames=20), observe=observe, on_frames=on_frames)
    assert [piece.shape[2] for piece in pieces] == [5, 8, 7]
    assert "step of chunk 2" in order[order.index("5 frames") :]
    assert torch.equal(torch.cat(pieces, 2), result.pixels)


def test_same_seed_same_video_and_no_global_random_state(model, vae, prompts):
    quick = replace(THREE, frames=29, steps=2, ar_step=1)
    state = torch.get_rng_state()
    first = generate_video(model, vae, prompts, quick, seed=3).pixels
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, generate_video(model, vae, prompts, quick, seed=3).pixels)
    assert not torch.equal(first, generate_video(model, vae, prompts, quick, seed=4).pixels)


def test_continuing_on_the_cache_is_one_run_with_bounded_memory(model, vae, prompts):
    kv = KVSettings(budget=1.0, compressor=Recent())
    settings = replace(THREE, frames=45, steps=3, ar_step=1, extension="continue", kv=kv)
    pixels, events = events_of(model, vae, prompts, settings)
    longer = replace(settings, frames=93)
    started = [e for _, e in events if isinstance(e, RunStarted)]
    assert len(started) == 1 and started[0].chunks == 6 and pixels.shape[2] == 45
    assert not any(isinstance(e, CachePass) for _, e in events)
    _, more = events_of(model, vae, prompts, longer)
    assert next(e for _, e in more if isinstance(e, RunStarted)).kv_bytes == started[0].kv_bytes


def test_without_a_longer_video_continuing_changes_nothing(model, vae, prompts):
    quick = replace(ONE, steps=2, ar_step=1)
    overlap, on_cache = (generate_video(model, vae, prompts, s) for s in (quick, replace(quick, extension="continue")))
    assert torch.equal(overlap.pixels, on_cache.pixels)


def test_reuse_runs_in_every_window(model, vae, prompts):
    quick = replace(THREE, frames=29, policy=Interval(warmup_steps=1, interval=2))
    _, events = events_of(model, vae, prompts, quick)
    actions = {(w, e.action) for w, e in events if isinstance(e, StepTaken)}
    assert actions == {(0, "compute"), (0, "reuse"), (1, "compute"), (1, "reuse")}
    assert sum(isinstance(e, ChunkFinished) for _, e in events) == 3 + 1


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 540}, "height: got 540, accepted: a multiple of 16, such as 544"),
        ({"width": 0}, "width: got 0, accepted: a whole number >= 1"),
        ({"frames": 0}, "frames: got 0, accepted: a whole number >= 1"),
        ({"base_frames": 98}, "base_frames: got 98, accepted: 1 more than a multiple of 4"),
        ({"base_frames": 13}, "base_frames: got 13, accepted: 17 or more"),
        ({"frames": 177, "base_frames": 17}, "base_frames: got 17, accepted: 21 or more"),
        ({"frames": 177, "overlap_frames": 13}, "overlap_frames: got 13, accepted: 17, 37, 57, 77: whole chunks"),
        ({"frames": 177, "overlap_frames": 97}, "overlap_frames: got 97, accepted: 17, 37, 57, 77"),
        ({"ar_step": -1}, "ar_step: got -1, accepted: a whole number >= 0"),
        ({"frames": 177, "extension": "continue"}, "ar_step: got 5, accepted: at least 10"),
        ({"frames": 177, "extension": "loop"}, "extension: got 'loop', accepted: overlap or continue"),
        (
            {"frames": 177, "extension": "continue", "ar_step": 10, "attention": "bidirectional"},
            "attention: got 'bidirectional', accepted: block-causal",
        ),
        ({"guidance": float("nan")}, "guidance: got nan"),
        ({"conditioning_noise": 1001.0}, "conditioning_noise: got 1001.0, accepted: a number from 0 to 1000"),
        ({"attention": "causal"}, "attention: got 'causal', accepted: block-causal or bidirectional"),
        ({"attention": "bidirectional", "kv": KVSettings(budget=1.0)}, "budget: got 1.0"),
        ({"chunk_frames": 0}, "chunk_frames: got 0"),
        ({"steps": 0}, "steps: got 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(SettingError) as refused:
        SkyReelsSettings(**changes)
    assert str(refused.value).startswith(message)


def test_guidance_of_1_or_less_runs_one_branch(model, vae, prompts):
    quick = replace(ONE, frames=5, steps=2)
    videos = []
    for guidance in (1.0, 0.0):
        pixels, events = events_of(model, vae, prompts, replace(quick, guidance=guidance))
        assert {e.branches for _, e in events if isinstance(e, StepTaken)} == {1}
        videos.append(pixels)
    assert torch.equal(*videos)


def test_refused_runs_leave_nothing_behind(model, vae, prompts):
    """A prompt of another width is found before anything is computed."""
    seen: list[object] = []
    narrow = tuple(prompt[..., :-1] for prompt in prompts)
    with pytest.raises(SettingError, match="context"):
        generate_video(model, vae, narrow, ONE, on_frames=seen.append)
    assert seen == []


def test_guidance_needs_its_second_prompt(model, vae, prompts):
    with pytest.raises(SettingError, match="prompt of chunk 0: got 1, accepted: 2 branches"):
        generate_video(model, vae, prompts[:1], ONE)


# -- presets ----------------------------------------------------------------------------------------------------------


def test_published_540p_run_from_its_preset():
    run = SkyReelsSettings.of_preset("skyreels-v2-1.3b-540p", "reference-fast")
    assert (run.frames, run.base_frames, run.overlap_frames) == (177, 97, 17)
    assert (run.height, run.width, run.steps, run.shift, run.guidance, run.ar_step) == (544, 960, 50, 8.0, 6.0, 5)
    assert [(w.first_frame, w.frames, w.prefix_frames) for w in run.windows] == [(0, 25, 0), (20, 25, 5)]
    assert [len(engine.plan.ticks) for engine in run.engines] == [70, 65]
    assert run.engines[1].prefix_noise == 0.02
    assert (run.policy.threshold, run.policy.warmup_steps, run.quantity.name) == (0.15, 5, "residual")


@pytest.mark.parametrize(("model_name", "size"), [("540p", (544, 960, 97)), ("720p", (720, 1280, 121))])
def test_14b_presets(model_name, size):
    vanilla = SkyReelsSettings.of_preset(f"skyreels-v2-14b-{model_name}", "vanilla")
    assert (vanilla.height, vanilla.width, vanilla.base_frames) == size and vanilla.attention == "bidirectional"
    slow = SkyReelsSettings.of_preset(f"skyreels-v2-14b-{model_name}", "reference-slow")
    assert slow.policy.distance.polynomial == (-3.03318725e5, 4.90537029e4, -2.65530556e3, 5.87365115e1, -0.315583525)
    fast = SkyReelsSettings.of_preset(f"skyreels-v2-14b-{model_name}", "fast")
    assert (len(fast.policy.first), len(fast.policy.computed)) == (34, 16) and fast.policy.computed[-1] == 49


def test_a_preset_is_for_its_steps_and_shift():
    def of(preset, **changes):
        return SkyReelsSettings.of_preset("skyreels-v2-1.3b-540p", preset, **changes)

    made_for = "accepted: 50 steps at shift 8"
    with pytest.raises(SettingError, match=f"preset fast: got '50 steps at shift 5', {made_for}"):
        of("fast", shift=5.0)
    with pytest.raises(SettingError, match=f"preset slow: got '30 steps', {made_for}"):
        of("slow", steps=30)
    assert of("reference-fast", steps=30, shift=5.0).steps == 30  # decides while it runs
    assert of("fast", frames=97, policy=Interval(warmup_steps=1, interval=2)).policy.interval == 2
