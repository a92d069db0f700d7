"""What a user sees while the sampler runs: finished chunks as a video, and how much time is left."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import av
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from comfy_execution.utils import CurrentNodeContext
from hostkit import STAGGERED, close, latent, load, module, ours, prompt, reuse, sample
from tiny_files import MINI_VAE

live_preview = module("nodes.adapters.shown.live_preview")
SettingError = module("flowcache_core.errors").SettingError
FRAMES = 21
WINDOWS = {**STAGGERED, "window_frames": 6, "overlap_frames": 2}


@pytest.fixture(scope="module")
def model():
    return load()


@pytest.fixture(scope="module")
def vae():
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(MINI_VAE)))


@pytest.fixture(autouse=True)
def temp(tmp_path, monkeypatch):
    """The host's folder for temporary files."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    return tmp_path / "temp"


@pytest.fixture
def told(monkeypatch):
    """What the server would send, in order."""
    sent = []

    class Server:
        client_id = "browser"
        prompt_queue = SimpleNamespace(get_current_queue_volatile=lambda: ([], []))

        def send_sync(self, event, data, sid):
            sent.append((event, data, sid))

    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=Server())))
    return sent


@pytest.fixture(autouse=True)
def running():
    """Everything here runs as node 12 of a prompt."""
    with CurrentNodeContext("prompt 1", "12"):
        yield


def sampler_node(plan, vae=None, **inputs):
    return ours(plan, preview_vae=vae, preview_fps=24, **inputs)


def frames_of(path):
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 24
        return torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in container.decode(video=0)])


@torch.inference_mode()
def decoded(vae, out):
    """As VAE Decode does, ``[T, H, W, 3]`` in 0..1."""
    return vae.decode(out)[0].float()


@pytest.fixture
def pieces(monkeypatch):
    """Frames as they are handed to the encoder."""
    seen, add = [], live_preview.GrowingVideo.add

    def spy(self, frames):
        seen.append(frames.clone())
        add(self, frames)

    monkeypatch.setattr(live_preview.GrowingVideo, "add", spy)
    return seen


@pytest.mark.parametrize("attention", ["block-causal", "bidirectional"])
def test_finished_chunks_are_what_the_vae_makes_of_the_whole(model, vae, pieces, attention):
    plan = {**STAGGERED, "attention": attention}
    out = sample(model, sampler_node(plan, vae), negative=prompt(8))[0]
    assert torch.equal(out, sample(model, ours(plan), negative=prompt(8))[0])
    made = torch.cat(pieces).float() / 255
    assert made.shape == (FRAMES, 32, 64, 3)
    assert (made - decoded(vae, out)).abs().max() < 1.01 / 255


def test_the_video_can_be_watched_before_the_run_ends(model, vae, told, temp, monkeypatch):
    monkeypatch.setattr(module("nodes.adapters.shown.live_map"), "PAUSE", 0.0)
    monkeypatch.setattr(module("nodes.adapters.shown.live_map"), "SHARE", 1e9)
    patched = reuse(model, threshold=50.0)
    out = sample(patched, sampler_node(STAGGERED, vae))[0]
    videos = [(place, data) for place, (event, data, _) in enumerate(told) if event == "executed"]
    assert len(videos) == 3
    maps = [place for place, (event, _, _) in enumerate(told) if event == "flowcache.run"]
    assert any(videos[1][0] < place < videos[2][0] for place in maps)
    for _, data in videos:
        (entry,) = data["output"]["images"]
        assert (data["node"], data["prompt_id"], entry["type"]) == ("12", "prompt 1", "temp")
        assert data["output"]["animated"] == (True,)
    names = [data["output"]["images"][0]["filename"] for _, data in videos]
    assert (
        sorted(path.name for path in temp.iterdir()) == names[1:]
    )  # the browser may still be reading the last but one
    assert [len(frames_of(temp / name)) for name in names[1:]] == [13, FRAMES]
    shown = frames_of(temp / names[2]).float() / 255
    assert (shown - decoded(vae, out)).abs().mean() < 0.03  # H.264 is lossy


def test_given_frames_and_later_windows_are_shown_once(model, vae, pieces):
    given = torch.randn(1, 16, 2, 4, 8, generator=torch.Generator().manual_seed(3))
    node = sampler_node(WINDOWS, vae, prefix={"samples": given})
    out = sample(model, node, start=latent(57))[0]
    close(out[:, :, :2], given)
    made = torch.cat(pieces).float() / 255
    assert made.shape[0] == 57
    assert (made - decoded(vae, out)).abs().max() < 1.01 / 255


def test_the_first_video_of_a_batch_is_shown(model, vae, pieces):
    out = sample(model, sampler_node(STAGGERED, vae), start=latent(batch=2))[0]
    assert (torch.cat(pieces).float() / 255 - decoded(vae, out[:1])).abs().max() < 1.01 / 255


@pytest.mark.parametrize(
    ("place", "error", "reason"),
    [
        ("write", OSError("No space left on device"), "No space left on device"),
        ("open", av.codec.codec.UnknownCodecError("h264"), "h264"),  # a PyAV that was built without it
        ("add", MemoryError(), "MemoryError"),
    ],
)
def test_what_keeps_a_preview_from_being_shown_does_not_end_the_run(
    model, vae, monkeypatch, caplog, place, error, reason
):
    def fail(*args):
        raise error

    monkeypatch.setattr(live_preview.GrowingVideo, place, fail)
    out = sample(model, sampler_node(STAGGERED, vae))[0]
    assert torch.equal(out, sample(model, ours(STAGGERED))[0])
    (told,) = [r.message for r in caplog.records if "previews" in r.message]
    assert told.startswith("FlowCache: no more previews in this run: ") and reason in told


def test_a_server_that_cannot_be_told_does_not_end_the_run(model, vae, told, monkeypatch):
    def gone(*args):
        raise RuntimeError("Event loop is closed")

    server = sys.modules["server"].PromptServer.instance
    monkeypatch.setattr(server, "send_sync", gone)
    out = sample(model, sampler_node(STAGGERED, vae))[0]
    assert torch.equal(out, sample(model, ours(STAGGERED))[0]) and told == []


def test_one_sampler_object_shows_each_run_on_its_own_node(model, vae, told):
    sampler = sampler_node(STAGGERED, vae)
    shown = []
    for number in ("12", "34"):
        told.clear()
        with CurrentNodeContext("prompt 2", number):
            sample(model, sampler)
        shown.append({data["display_node"] for event, data, _ in told if event == "executed"})
        assert {data["node"] for event, data, _ in told if event == "flowcache.run"} == {number}
    assert shown == [{"12"}, {"34"}]


def test_another_vae_is_refused(model):
    other = SimpleNamespace(get_sd=lambda: {"decoder.conv_in.weight": torch.zeros(1)}, vae_dtype=torch.float32)
    other.encode = other.decode = None
    with pytest.raises(SettingError, match=r"AR Video Sampler .*preview_vae: .*accepted: a Wan 2.1 video autoencoder"):
        sample(model, sampler_node(STAGGERED, other))


def test_no_preview_of_a_run_that_stays_noisy(model, vae, pieces):
    sample(model, sampler_node(STAGGERED, vae), sigmas=torch.tensor([1.0, 0.8, 0.5]))
    assert pieces == []
