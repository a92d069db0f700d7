"""FlowCache Compare: figures that can be checked by hand, the runs behind them, and what cannot be compared."""

from __future__ import annotations

import json

import av
import folder_paths
import pytest
import torch
from hostkit import NODES, hosts, latent, load, module, reuse, sample, sigmas_of

SettingError = module("flowcache_core.errors").SettingError
LONG = 45  # 12 latent frames: four chunks


@torch.inference_mode()
def compare(reference, result, **inputs):
    return NODES["FlowCacheCompare"].execute(reference=reference, result=result, **inputs)


@pytest.fixture
def frames():
    return torch.rand(LONG, 32, 64, 3, generator=torch.Generator().manual_seed(0)).mul(0.5).add(0.2)


@pytest.fixture(autouse=True)
def temp(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


def test_figures_of_every_chunk(frames):
    """The second chunk (frames 9 to 20) is off by 0.2 everywhere: 14 dB there, 100 elsewhere."""
    other = frames.clone()
    other[9:21] += 0.2
    out = compare(frames, other)
    images, text, document = out.args
    figures = json.loads(document)
    assert [(c["first_frame"], c["frames"]) for c in figures["chunks"]] == [(0, 9), (9, 12), (21, 12), (33, 12)]
    assert [c["psnr"] for c in figures["chunks"]] == pytest.approx([100, 13.98, 100, 100], abs=0.1)
    assert figures["whole"]["psnr"] == pytest.approx(13.98 + 10 * torch.tensor(45 / 12).log10().item(), abs=0.1)
    assert 9 <= figures["worst_frame"] < 21 and figures["chunks"][1]["ssim"] < 0.99 < figures["chunks"][0]["ssim"]
    assert text.startswith("19.7 dB, another video; connect both MODELs")
    assert images.shape[0] == LONG and images.shape[2] >= 3 * 64


def test_the_node_shows_a_video_and_the_frame_that_differs_most(frames, temp):
    shown = compare(frames, 1 - frames).ui
    with av.open(str(temp / shown["images"][0]["filename"])) as file:
        assert sum(1 for _ in file.decode(video=0)) == LONG
    assert all((temp / one["filename"]).stat().st_size > 100 for one in shown["slider"]) and len(shown["slider"]) == 2


def test_identical(frames):
    text = compare(frames, frames.clone()).args[1]
    assert text.startswith("100.0 dB, as good as identical") and "1.0000" in text


def test_latents_with_both_runs():
    vae = NODES["FlowCacheMiniModel"].execute().args[1]
    plain = load()
    first, second = reuse(plain, threshold=0.0), reuse(plain, threshold=1.5)
    sigmas = sigmas_of(plain, 8)
    start = latent(LONG)
    outs = [sample(model, hosts(), start=start, sigmas=sigmas)[0] for model in (first, second)]
    models = {"model_reference": first, "model_result": second}
    out = compare({"samples": outs[0]}, {"samples": outs[1]}, vae=vae, **models)
    document = json.loads(out.args[2])
    record = module("nodes.adapters.run.settings").last_record(second)
    assert document["runs"]["result"]["computed_share"] == record.computed_share < 1
    assert document["plain_steps"] == round(8 * record.computed_share) == out.ui["plain_steps"][0]
    assert f"{document['plain_steps']} plain steps cost the same: compare with them." in out.args[1].splitlines()[0]
    assert len(document["chunks"]) == 4 and document["notes"] == []
    other = sample(second, hosts(), start=start, sigmas=sigmas, seed=9)[0]
    text = compare({"samples": outs[0]}, {"samples": other}, vae=vae, **models).args[1]
    assert "began from different noise" in text
    few = sample(first, hosts(), start=start, sigmas=sigmas_of(plain, 3))[0]
    rival = {"model_reference": first, "model_result": first}
    text = compare({"samples": outs[0]}, {"samples": few}, vae=vae, **rival).args[1]
    assert "These are plain steps" in text.splitlines()[0] and "different noise" not in text
    with pytest.raises(SettingError, match="FlowCache Compare, vae: got None"):
        compare({"samples": outs[0]}, {"samples": outs[1]})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (torch.rand(LONG, 32, 48, 3), "FlowCache Compare, result: got .*as many frames of the same size"),
        (torch.rand(LONG - 4, 32, 64, 3), "FlowCache Compare, result: got .*as many frames of the same size"),
        (torch.rand(LONG, 8, 8, 3), "FlowCache Compare, result: got .*at least 11 x 11"),
        (torch.rand(0, 32, 64, 3), "FlowCache Compare, result: got .*IMAGE frames"),
        (torch.rand(32, 64, 3), "FlowCache Compare, result: got .*IMAGE frames"),
        ({"audio": 1}, "FlowCache Compare, result: got"),
        (5, "FlowCache Compare, result: got 5"),
        (None, "FlowCache Compare, result: got None"),
    ],
)
def test_what_cannot_be_compared(frames, other, message):
    with pytest.raises(SettingError, match=message):
        compare(frames, other)


def test_no_frames_at_all(frames):
    with pytest.raises(SettingError, match="FlowCache Compare, reference: got .*IMAGE frames"):
        compare(frames[:0], frames[:0])


def test_what_is_left_out_of_the_comparison_is_said(frames):
    vae = NODES["FlowCacheMiniModel"].execute().args[1]
    one = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    out = compare({"samples": one}, {"samples": one.repeat(3, 1, 1, 1, 1)}, vae=vae)
    assert json.loads(out.args[2])["notes"] == ["note: of the 3 videos in result the first is compared"]
    broken = frames.clone()
    broken[3:] = float("nan")
    text = compare(broken, broken).args[1]
    assert "note: reference has values that are not finite" in text and "note: result has" in text


def test_a_temp_folder_that_is_a_file_fails_nothing(frames, tmp_path, monkeypatch):
    (tmp_path / "temp").write_text("")
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    out = compare(frames, frames)
    assert out.args[1].startswith("100.0 dB") and "images" not in out.ui
