"""Every template on a real server: listed, in step with its API copy, executed, and its video looked at."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import folder_paths
import numpy as np
import pytest
import torch
from api_copy import COPIES, WORKFLOWS, api_copy, names, read
from comfy_server import PACK_NAME, ComfyServer, comfy_server, lay_out
from english import LOCALES
from hostkit import NODES, module
from PIL import Image
from tiny_files import write_models

write_video = module("flowcache_core.report.video").write_video
HOST = Path(folder_paths.__file__).parent
TINY = Path(__file__).resolve().parent / "tiny_text"
LARGEST_THUMBNAIL = 100_000  # bytes
# Set to make the thumbnails of the templates that run here anew, of their videos.
PICTURES = bool(os.environ.get("FLOWCACHE_PICTURES"))


@dataclass(frozen=True)
class Expected:
    """frames and size of the video; steps: in all chunks, as every report of the graph says, computed share below 1
    unless ``reuses`` is False; small: what is changed so that a tiny model runs it in seconds, by class.
    """

    frames: int
    size: tuple[int, int]
    steps: int
    reuses: bool = True
    compresses: bool = True
    small: tuple[tuple[str, str, Any], ...] = ()


def smaller(length: int, budget: float | None = None) -> tuple[tuple[str, str, Any], ...]:
    latent = "EmptyARVideoLatent"
    changes = ((latent, "width", 64), (latent, "height", 64), (latent, "length", length))
    return changes if budget is None else (*changes, ("FlowCacheKVCompressor", "budget", budget))


EXPECTED = {
    "flowcache_mini_text_to_video": Expected(93, (256, 256), 8 * 50),
    "flowcache_mini_compare": Expected(93, (528, 256), 8 * 50),
    "flowcache_mini_image_to_video": Expected(85, (256, 256), 7 * 50),
    "flowcache_mini_extend_video": Expected(93, (256, 256), 4 * 50),
    "flowcache_mini_prompt_schedule": Expected(105, (256, 256), 9 * 50),
    "flowcache_causal_forcing_long_video": Expected(45, (64, 64), 12 * 4, reuses=False, small=smaller(45, 5)),
    "flowcache_self_forcing": Expected(69, (64, 64), 6 * 4, reuses=False, small=smaller(69, 3)),
    "flowcache_mini_magi_text_to_video": Expected(117, (256, 256), 10 * 32),
    "flowcache_mini_magi_image_to_video": Expected(81, (256, 256), 7 * 32),
    "flowcache_mini_magi_extend_video": Expected(93, (256, 256), 4 * 32),
    "flowcache_magi_text_to_video": Expected(
        192, (64, 64), 8 * 64, small=tuple(("FlowCacheEmptyMagiLatent", side, 64) for side in ("width", "height"))
    ),
    "flowcache_reward_forcing": Expected(69, (64, 64), 6 * 4, reuses=False, small=smaller(69)),
    "flowcache_causal_forcing_2_steps": Expected(
        29, (64, 64), 4 + 7 * 2, reuses=False, compresses=False, small=smaller(29)
    ),
    "flowcache_krea_realtime": Expected(69, (64, 64), 6 * 4, reuses=False, small=smaller(69)),
    "flowcache_streamdiffusion_v2": Expected(
        33,
        (64, 64),
        9 * 2,
        reuses=False,
        small=(("ImageFromBatch", "length", 33), ("ImageScale", "width", 64), ("ImageScale", "height", 64)),
    ),
    "flowcache_rolling_forcing": Expected(165, (64, 64), 14 * 4, reuses=False, small=smaller(165)),
    "flowcache_longlive_2": Expected(
        189,
        (64, 64),
        6 * 4,
        reuses=False,
        small=tuple(
            ("Wan22ImageToVideoLatent", field, value)
            for field, value in (("width", 64), ("height", 64), ("length", 189))
        ),
    ),
    "flowcache_skyreels_v2_df": Expected(97, (64, 64), 5 * 50, compresses=False, small=smaller(97)),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    base = tmp_path_factory.mktemp("comfy")
    lay_out(base)
    (base / "custom_nodes" / TINY.name).symlink_to(TINY, target_is_directory=True)
    write_models(base / "models")
    write_video(base / "input" / "my_video.mp4", torch.randint(0, 256, (40, 48, 80, 3), dtype=torch.uint8), fps=16)
    with comfy_server(HOST, Path(sys.executable), base) as running:
        yield running


def prompt_of(name: str) -> dict[str, Any]:
    """The API copy, made small, with the stand-in for the text encoder."""
    prompt = read(COPIES / f"{name}.json")
    for kind, field, value in EXPECTED[name].small:
        for node in prompt.values():
            if node["class_type"] == kind:
                node["inputs"][field] = value
    for node in prompt.values():
        if node["class_type"] in ("CLIPTextEncode", "FlowCacheMagiPrompt"):
            node["class_type"] = "TinyTextEncode"
            node["inputs"] = {"text": node["inputs"]["text"]}
        # The VAE of 48-channel latents has one size, that of its 1.4 GB.
        if node["class_type"] == "VAEDecode" and name == "flowcache_longlive_2":
            node["class_type"] = "TinyDecode"
            node["inputs"] = {"samples": node["inputs"]["samples"], "scale": 16}
    return {number: node for number, node in prompt.items() if node["class_type"] != "CLIPLoader"}


def video(path: Path) -> np.ndarray:
    """``[T, H, W, 3]`` uint8."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def by_class(prompt: dict[str, Any], outputs: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [shown for number, shown in sorted(outputs.items()) if prompt[number]["class_type"] == kind]


@dataclass(frozen=True)
class Result:
    frames: np.ndarray
    texts: dict[str, str]
    """Of the report nodes, by the class of what they look at."""


@pytest.fixture(scope="module")
def results(server: ComfyServer) -> dict[str, Result]:
    """Filled as the templates run, so that each runs once."""
    return {}


def run(name: str, server: ComfyServer, results: dict[str, Result]) -> Result:
    if name not in results:
        prompt = prompt_of(name)
        outputs = server.run(prompt)
        (saved,) = by_class(prompt, outputs, "SaveVideo")
        path = server.file(saved["images"][0])
        assert path.suffix == ".mp4"
        texts = {}
        for number, shown in outputs.items():
            if prompt[number]["class_type"] == "FlowCacheReport":
                watched = prompt[prompt[number]["inputs"]["model"][0]]["class_type"]
                texts[watched] = shown["text"][0]
                picture = Image.open(server.file(shown["images"][0]))
                assert picture.width == 960
        results[name] = Result(video(path), texts)
        if PICTURES and "_mini_" in name:
            save_thumbnail(results[name].frames, WORKFLOWS / f"{name}.jpg")
    return results[name]


def save_thumbnail(frames: np.ndarray, path: Path) -> None:
    """The video itself, five pictures a second, at its own pace."""
    images = [Image.fromarray(frame) for frame in frames[::3]]
    images[0].save(path, "WEBP", save_all=True, append_images=images[1:], duration=3000 // 16, loop=0, quality=60)


def test_every_template_is_expected_and_has_a_copy() -> None:
    assert names() == sorted(EXPECTED) == sorted(path.stem for path in COPIES.glob("*.json"))


@pytest.mark.parametrize("name", names())
def test_the_copy_says_what_the_workflow_says(name: str) -> None:
    assert read(COPIES / f"{name}.json") == api_copy(read(WORKFLOWS / f"{name}.json")), "run tests/host/api_copy.py"


@pytest.mark.parametrize("name", names())
def test_the_workflow_explains_itself(name: str) -> None:
    """A note in the graph, a thumbnail, and where to get every file that a node asks for."""
    nodes = read(WORKFLOWS / f"{name}.json")["nodes"]
    assert any(node["type"] == "MarkdownNote" for node in nodes)
    thumbnail = WORKFLOWS / f"{name}.jpg"
    with Image.open(thumbnail) as image:
        if "_mini_" in name:
            # The template browser asks for .jpg whatever it is, and browsers look at the content: these play.
            assert image.format == "WEBP" and image.n_frames > 10
        else:
            assert image.format == "JPEG"
    assert thumbnail.stat().st_size < LARGEST_THUMBNAIL
    for node in nodes:
        files = [
            value
            for value in node.get("widgets_values") or ()
            if isinstance(value, str) and re.fullmatch(r"[^/\s]+\.(safetensors|pt)", value)
        ]
        models = node["properties"].get("models", [])
        assert [model["name"] for model in models] == files
        for model in models:
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith("/" + model["name"])
            assert model["directory"] in ("diffusion_models", "text_encoders", "vae")


def test_the_host_lists_and_serves_them(server: ComfyServer) -> None:
    assert sorted(server.get("/workflow_templates")[PACK_NAME]) == names()
    for name in names():
        assert server.get(f"/api/workflow_templates/{PACK_NAME}/{name}.json") == read(WORKFLOWS / f"{name}.json")
        assert server.status(f"/api/workflow_templates/{PACK_NAME}/{name}.jpg") == 200


def test_the_host_serves_help_pages_and_translations(server: ComfyServer) -> None:
    for name in NODES:
        assert server.status(f"/extensions/{PACK_NAME}/docs/{name}.md") == 200
        assert server.status(f"/extensions/{PACK_NAME}/docs/{name}/zh.md") == 200
    served = server.get("/i18n")
    for language in ("en", "zh"):
        assert {name: served[language]["nodeDefs"][name] for name in NODES} == read(
            LOCALES / language / "nodeDefs.json"
        )
        assert "FlowCache" in served[language]["nodeCategories"]


def test_the_host_offers_the_subgraph(server: ComfyServer) -> None:
    """ComfyUI serves ``subgraphs/`` of packs: it stands in the library of nodes."""
    ours = {
        number: entry
        for number, entry in server.get("/global_subgraphs").items()
        if entry["info"]["node_pack"] == f"custom_nodes.{PACK_NAME}"
    }
    assert [entry["name"] for entry in ours.values()] == ["FlowCache for AR video"]
    (number,) = ours
    (definition,) = json.loads(server.get(f"/global_subgraphs/{number}")["data"])["definitions"]["subgraphs"]
    assert {node["type"] for node in definition["nodes"]} <= set(NODES)


def test_every_note_is_there_in_chinese() -> None:
    chinese = read(WORKFLOWS.parent / "web" / "notes.zh.json")
    assert sorted(chinese) == names()
    for name in names():
        (note,) = [n for n in read(WORKFLOWS / f"{name}.json")["nodes"] if n["type"] == "MarkdownNote"]
        assert note["properties"]["flowcache_note"] == name
        english = note["widgets_values"][0]
        assert chinese[name].count("\n\n") == english.count("\n\n"), name
        assert re.findall(r"https://[^)\s]+", chinese[name]) == re.findall(r"https://[^)\s]+", english)


@pytest.mark.parametrize("name", names())
def test_it_runs(name: str, server: ComfyServer, results: dict[str, Result]) -> None:
    expected, result = EXPECTED[name], run(name, server, results)
    frames, height, width, _ = result.frames.shape
    assert (frames, (width, height)) == (expected.frames, expected.size)
    assert result.frames.astype(float).std() > 1, "every pixel is the same"
    assert result.texts
    for watched, text in result.texts.items():
        counts = re.search(r"computed (\d+) of (\d+)", text)
        assert counts is not None, text
        computed, total = map(int, counts.groups())
        assert total == expected.steps
        plain = watched == "FlowCacheMiniModel"  # the side without FlowCache
        assert (computed < total) == (expected.reuses and not plain), text
        assert ("K/V compressions" in text) == (expected.compresses and not plain), text


@pytest.mark.parametrize("name", ["flowcache_mini_text_to_video", "flowcache_mini_magi_text_to_video"])
def test_the_mini_video_shows_what_was_asked_for(name: str, server: ComfyServer, results: dict[str, Result]) -> None:
    """A red shape on a dark ground, further right at the end of the first second."""
    frames = run(name, server, results).frames.astype(int)
    red = (frames[..., 0] > 150) & (frames[..., 1] < 110) & (frames[..., 2] < 110)
    share = red.mean((1, 2))
    assert 0.02 < share[0] < 0.25
    columns = [np.nonzero(red[time])[1].mean() for time in (0, 15)]
    assert columns[1] > columns[0] + 10


@pytest.mark.parametrize("name", ["flowcache_mini_image_to_video", "flowcache_mini_magi_image_to_video"])
def test_the_video_begins_with_its_start_image(name: str, server: ComfyServer, results: dict[str, Result]) -> None:
    first = run(name, server, results).frames[0].astype(float)
    image = np.full((64, 64, 3), (0x0F, 0x0F, 0x17), float)
    image[22:42, 8:28] = (0xE6, 0x1F, 0x1F)
    wanted = np.asarray(Image.fromarray(image.astype(np.uint8)).resize((256, 256), Image.Resampling.LANCZOS), float)
    psnr = 10 * np.log10(255**2 / ((first - wanted) ** 2).mean())
    assert psnr > 18, psnr


@pytest.mark.parametrize("name", ["flowcache_mini_extend_video", "flowcache_mini_magi_extend_video"])
def test_given_chunks_are_no_steps(name: str, server: ComfyServer, results: dict[str, Result]) -> None:
    """Four of eight chunks are given: the steps are those of the other four."""
    (text,) = run(name, server, results).texts.values()
    steps = 32 if "magi" in name else 50
    assert re.search(rf"computed \d+ of {4 * steps} ", text), text


@pytest.mark.parametrize("name", ["flowcache_mini_extend_video", "flowcache_mini_magi_extend_video"])
def test_the_extension_does_what_its_prompt_says(name: str, server: ComfyServer, results: dict[str, Result]) -> None:
    """To the right in the first part (45 frames), then up."""
    assert {node["inputs"]["text"] for node in read(COPIES / f"{name}.json").values() if "text" in node["inputs"]} == {
        "a yellow circle moving right",
        "a yellow circle moving up",
        *([""] if "magi" not in name else []),
    }
    frames = run(name, server, results).frames.astype(int)
    yellow = (frames[..., 0] > 150) & (frames[..., 1] > 120) & (frames[..., 2] < 110)

    def place(time: int) -> tuple[float, float]:
        rows, columns = np.nonzero(yellow[time])
        return rows.mean(), columns.mean()

    assert place(16)[1] > place(0)[1] + 20
    assert place(76)[0] < place(48)[0] - 40


def test_the_video_follows_each_prompt_of_its_schedule(server: ComfyServer, results: dict[str, Result]) -> None:
    """Red at first, blue from the second prompt on, and at the third it leaves the row it moved along."""
    frames = run("flowcache_mini_prompt_schedule", server, results).frames.astype(int)
    red = (frames[..., 0] > 150) & (frames[..., 2] < 110)
    blue = (frames[..., 2] > 150) & (frames[..., 0] < 110)
    second, third = 70, 104  # frames; the third prompt starts at frame 69
    assert red[8].mean() > 0.02 and not blue[8].any()
    assert blue[second].mean() > 0.02 and not red[second].any()
    rows = [np.nonzero(blue[time])[0].mean() for time in (second, third)]
    assert rows[1] < rows[0] - 20


def test_both_sides_of_the_comparison_start_from_the_same_noise(
    server: ComfyServer, results: dict[str, Result]
) -> None:
    """Close to each other, not equal: FlowCache is at work on the right side only."""
    frames = run("flowcache_mini_compare", server, results).frames.astype(float)
    left, right = frames[:12, :, :256], frames[:12, :, -256:]
    difference = np.abs(left - right).mean()
    assert 0 < difference < 12, difference
