"""Models as released: rows that hold together, levels from their projects, two runs where the first chunk differs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from flowcache_core.engine import EngineSettings, generate
from flowcache_core.errors import SettingError
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.shot_sink import ShotSink
from flowcache_core.kv.sink_window import SinkWindow
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.plan.blockwise import blockwise
from flowcache_core.plan.shots import Shots
from flowcache_core.plan.staggered import VideoWindow
from flowcache_core.released import RELEASED, Released
from flowcache_core.schedule import from_sigmas, skyreels
from flowcache_core.solvers.renoise import ReNoise


@pytest.mark.parametrize("row", RELEASED.values(), ids=RELEASED)
def test_every_row_plans_a_video(row: Released) -> None:
    windows = row.windows(72, 0)
    assert windows[-1].end_frame == 72 and windows[0].prefix_frames == 0
    for part in windows:
        schedule = row.schedule_of(part)
        plan = row.plan.plan(part.frames, schedule.steps, part.prefix_frames)
        settings = EngineSettings(plan, schedule, ReNoise(), kv=row.kv(), clean_pass=True, attention=row.attention)
        assert settings.notes() == () or not row.window_frames or len(plan.chunks) == 1
    if row.window_frames:
        kept = round(row.kv().budget * row.chunk_frames) + row.chunk_frames
        assert kept == row.window_frames + (row.sink_frames if row.joint else 0)
    assert row.schedule.sigmas[-1] == 0


def test_levels_are_those_of_the_projects() -> None:
    """Self-Forcing takes entry 1000 - t of its table of 1000 shifted levels (shift 5)."""
    table = [5 * s / (1 + 4 * s) for s in (1 - i / 1000 for i in range(1000))]
    expected = [table[1000 - t] for t in (1000, 750, 500, 250)] + [0]
    assert RELEASED["Self-Forcing 1.3B"].schedule.sigmas == pytest.approx(expected, abs=1e-7)
    two = RELEASED["Causal-Forcing++ 1.3B, 2 steps"]
    assert two.schedule.sigmas == pytest.approx([1, 5 / 6, 0]) and two.first_schedule.sigmas == pytest.approx(expected)
    assert RELEASED["StreamDiffusionV2 1.3B, video to video"].schedule.sigmas == (0.7, 0.5, 0.0)


def test_windows_are_budgets_beside_the_active_chunk() -> None:
    kv = RELEASED["LongLive 1.3B"].kv()
    assert kv.budget == 3 and kv.compressor == SinkWindow(sink=1.0)
    kv = RELEASED["Krea Realtime 14B"].kv()
    assert kv.budget == 1 and kv.compressor == Recent()
    assert RELEASED["Self-Forcing 1.3B"].kv().budget is None


def test_shots_keep_their_start_and_stand_apart() -> None:
    row = RELEASED["LongLive 2.0 5B"]
    assert row.kv((2, 5)).compressor == ShotSink(sink=1.0, shots=(2, 5)) and row.kv().compressor == SinkWindow(sink=1.0)
    # UniPC's four steps of the original scheduler at shift 5: from 0.999 of the noise.
    assert row.schedule.sigmas == pytest.approx(skyreels(4, 5.0).sigmas)
    shots, plan = row.shots((2, 5)), blockwise(56, 8, 4)
    assert [shots.first_frame(chunk) for chunk in plan.chunks] == [0, 8, 24, 32, 40, 56, 64]
    assert shots.added == 16 and RELEASED["LongLive 1.3B"].shots((2,)).added == 0


def test_a_cut_moves_the_chunks_after_it_for_the_model() -> None:
    """The video with a cut is the one whose chunks stand further on; nothing else changes."""
    torch.manual_seed(0)
    config = WanConfig(dim=24, ffn_dim=48, num_layers=2, num_heads=2, text_dim=16, freq_dim=16)
    model = WanTransformer(config).eval().requires_grad_(False)
    torch.nn.init.normal_(model.head.head.weight, std=0.1)
    text, noise = torch.randn(1, 5, 16), torch.randn(1, 16, 3, 4, 4)
    settings = EngineSettings(blockwise(3, 1, 2), RELEASED["Self-Forcing 1.3B"]._schedule((1000, 500)), clean_pass=True)

    def video(**options: object) -> torch.Tensor:
        return generate(WanDenoiser(model, {0: (text,)}, **options), settings, noise)  # type: ignore[arg-type]

    plain, cut, apart = video(), video(shots=Shots((1,), 8)), video(shots=Shots((1, 2), 8))
    assert torch.equal(plain[:, :, 0], cut[:, :, 0]) and not torch.allclose(plain[:, :, 1], cut[:, :, 1], atol=1e-4)
    assert torch.equal(cut[:, :, 1], apart[:, :, 1]) and not torch.allclose(cut[:, :, 2], apart[:, :, 2], atol=1e-4)
    assert torch.equal(video(shots=Shots((1,), 0)), plain)


def test_other_levels_and_sizes_are_refused_with_what_is_right() -> None:
    row = RELEASED["Self-Forcing 1.3B"]
    row.check_levels(row.schedule)
    row.check_levels(from_sigmas([1.0, 0.9374, 0.8334, 0.6251, 0.0]))
    for wrong in ([1.0, 0.9, 0.8, 0.6, 0.0], [1.0, 0.9375, 0.0], [1.0, 0.0]):
        with pytest.raises(SettingError, match="0.9375"):
            row.check_levels(from_sigmas(wrong))
    row.check_size(1536, 30)
    with pytest.raises(SettingError, match="1536"):
        row.check_size(5120, 40)


@pytest.mark.parametrize("wrong", [{"window_frames": 3}, {"window_frames": 10}, {"sink_frames": 3}])
def test_rows_that_contradict_themselves(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingError):
        replace(RELEASED["Self-Forcing 1.3B"], **wrong)


def test_a_first_chunk_of_its_own_is_a_run_of_its_own() -> None:
    """Two runs leave what one would: the second one's chunks see the K/V of a clean pass over the first chunk."""
    torch.manual_seed(0)
    config = WanConfig(dim=24, ffn_dim=48, num_layers=2, num_heads=2, text_dim=16, freq_dim=16)
    model = WanTransformer(config).eval().requires_grad_(False)
    torch.nn.init.normal_(model.head.head.weight, std=0.1)
    denoiser = WanDenoiser(model, {0: (torch.randn(1, 5, 16),)})
    noise = torch.randn(1, 16, 4, 4, 4)
    row = replace(RELEASED["Causal-Forcing++ 1.3B, 2 steps"], size=(24, 2))
    first, rest = row.windows(4, 0)
    assert (first, rest) == (VideoWindow(0, 1, 0), VideoWindow(0, 4, 1))

    def run(part: VideoWindow, prefix: torch.Tensor | None) -> torch.Tensor:
        schedule = row.schedule_of(part)
        plan = blockwise(part.frames, 1, schedule.steps, part.prefix_frames)
        settings = EngineSettings(plan, schedule, ReNoise(), kv=row.kv(), clean_pass=True)
        return generate(denoiser, settings, noise[:, :, : part.frames], prefix=prefix)

    begun = run(first, None)
    video = run(rest, begun)
    assert torch.equal(video[:, :, :1], begun)
    # The same chunk by another way: as the first of a plan of four steps over the whole video.
    whole = EngineSettings(blockwise(4, 1, 4), row.first_schedule, ReNoise(), clean_pass=True)
    assert torch.equal(generate(denoiser, whole, noise)[:, :, :1], begun)


def test_given_frames_take_the_place_of_the_first_chunk() -> None:
    row = RELEASED["Causal-Forcing++ 1.3B, 1 step"]
    assert row.windows(5, 1) == (VideoWindow(0, 5, 1),)
    assert row.schedule_of(row.windows(5, 1)[0]).steps == 1
    assert row.windows(1, 0) == (VideoWindow(0, 1, 0),) and row.schedule_of(row.windows(1, 0)[0]).steps == 4
