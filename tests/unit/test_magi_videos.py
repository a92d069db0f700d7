"""What MAGI-1's runs refuse, its settings, and whole videos from prefix to pixels."""

from __future__ import annotations

import pytest
import torch
from magi_plain import SCALES
from magi_sampled import FRAMES, STEPS, captions, distilled, engine, noise, random_model
from torch import Tensor

from flowcache_core.engine import EngineSettings, generate
from flowcache_core.errors import SettingError
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.magi.denoiser import MagiDenoiser
from flowcache_core.models.magi.guidance import visible_to_clean
from flowcache_core.models.magi.transformer import MagiTransformer
from flowcache_core.models.magi.vae import LATENT_SCALE, MagiVAE, MagiVAEConfig, Tiling
from flowcache_core.plan import window
from flowcache_core.report.events import StepTaken
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.distance import PatchDistance
from flowcache_core.schedule import magi, shifted
from flowcache_core.video.magi import MagiSettings, captions_by_chunk, generate_video


@pytest.fixture(scope="module")
def model() -> MagiTransformer:
    return random_model()


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
