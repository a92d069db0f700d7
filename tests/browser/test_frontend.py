"""Every template opens in the real frontend, and the mini template runs there, in both renderers."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from api_copy import COPIES, names, read
from comfy_server import ComfyServer
from geometry import SMALLEST, cut_by_groups, outside, overlaps, still, view_of
from panels import RUN, look
from PIL import Image, ImageChops

ROOT = Path(__file__).resolve().parents[2]
MINI = "flowcache_mini_text_to_video"
# Set to make the pictures of README, help pages and template browser anew.
PICTURES = bool(os.environ.get("FLOWCACHE_PICTURES"))


def load_template(page: Any, name: str) -> None:
    """As the template browser does: fetch the served file and load it as a graph, with the view that it brings."""
    page.evaluate(
        """async name => {
            const answer = await fetch(`/api/workflow_templates/flowcache/${name}.json`);
            await window.app.loadGraphData(await answer.json(), true, true, null);
        }""",
        name,
    )


def open_template(page: Any, name: str) -> None:
    """:func:`load_template`, and all of it in view."""
    load_template(page, name)
    page.keyboard.press("Escape")
    page.wait_for_timeout(200)
    fit(page)


def fit(page: Any) -> None:
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    page.wait_for_timeout(1500 if PICTURES else 500)  # the view glides


def ours(errors: list[str]) -> list[str]:
    """Without the frontend's own: it asks the hub for the size of checkpoints that a template names, and may not."""
    foreign = ("huggingface.co", "Content Security Policy", "Failed to load resource")
    return [text for text in errors if not any(sign in text for sign in foreign)]


def picture(page: Any) -> Image.Image:
    return Image.open(io.BytesIO(page.screenshot(timeout=300_000))).convert("RGB")


def graph_only(image: Image.Image) -> Image.Image:
    """Without the side bar on the left and the bars at the top and at the bottom."""
    inner = image.crop((60, 90, image.width - 10, image.height - 60))
    background = Image.new("RGB", inner.size, inner.getpixel((5, 5)))
    left, top, right, bottom = ImageChops.difference(inner, background).point(lambda v: 255 * (v > 24)).getbbox()
    return inner.crop((max(0, left - 20), max(0, top - 20), right + 20, bottom + 20))


def save(image: Image.Image, path: Path, width: int, quality: int = 82) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((width, image.height * width // image.width), Image.Resampling.LANCZOS).save(path, quality=quality)


@pytest.mark.parametrize("name", names())
def test_template_opens_without_a_missing_node_or_an_error_and_is_in_sight(page: Any, name: str) -> None:
    page.errors.clear()
    load_template(page, name)
    boxes, view = still(page), view_of(page)
    assert overlaps(boxes) == [] and cut_by_groups(page, boxes) == []
    first = min(boxes, key=lambda box: (box["left"], box["top"]))
    assert first["name"].startswith("MarkdownNote") and first["top"] == min(box["top"] for box in boxes)
    assert view["scale"] >= SMALLEST and outside(boxes, view) == [], view
    look(page, f"template-{name}")
    nodes = page.evaluate(
        "() => app.graph.nodes.map(n => [n.type, n.type in LiteGraph.registered_node_types || !!n.subgraph])"
    )
    assert len(nodes) > 4
    assert [kind for kind, known in nodes if not known and kind not in ("MarkdownNote", "Note")] == []
    # What Run would post from the frontend is what the host tests post.
    posted = page.evaluate("async () => (await app.graphToPrompt()).output")
    prompt = {number: {key: node[key] for key in ("class_type", "inputs")} for number, node in posted.items()}
    assert prompt == read(COPIES / f"{name}.json")
    assert ours(page.errors) == []
    if PICTURES and page.renderer == "classic" and "_mini_" not in name:  # theirs are made of their videos
        fit(page)
        save(graph_only(picture(page)), ROOT / "workflows" / f"{name}.jpg", 640, 78)


def test_mini_template_runs_and_shows_video_and_report(page: Any, server: ComfyServer) -> None:
    page.errors.clear()
    open_template(page, MINI)
    if (
        page.renderer != "classic"
    ):  # what the other renderer has run is in the server's cache, and tells nobody anything
        page.evaluate("""() => {
            const noise = app.graph.nodes.find(n => n.type === 'RandomNoise');
            noise.widgets.find(w => w.name === 'noise_seed').value = 8;
        }""")
    page.get_by_test_id("queue-button").first.click()
    page.wait_for_function(
        """kinds => kinds.every(
            kind => app.graph.nodes.some(n => n.type === kind && app.nodeOutputs?.[n.id]?.images))""",
        arg=["FlowCacheReport", "SaveVideo"],
        polling=500,
        timeout=RUN,
    )
    boxes = still(page)  # map, panels, preview and results have come
    assert overlaps(boxes) == [] and cut_by_groups(page, boxes) == []
    shown = page.evaluate(
        """() => Object.fromEntries(app.graph.nodes.map(n => [n.type, {
            images: n.imgs?.length ?? 0,
            outputs: app.nodeOutputs?.[n.id] ?? null,
            text: (n.widgets ?? []).map(w => w.element?.textContent ?? '').join(''),
        }]))"""
    )
    report = shown["FlowCacheReport"]
    assert report["outputs"]["images"][0]["filename"].endswith(".png")
    assert all("saved " in shown[kind]["text"] for kind in ("SamplerCustomAdvanced", "FlowCacheChunkwiseReuse"))
    assert "saved " in report["text"] and "Next: " in report["text"] and "chunk 0 |" not in report["text"]
    assert shown["SaveVideo"]["outputs"]["images"][0]["filename"].endswith(".mp4")
    page.wait_for_function("() => [...document.querySelectorAll('video')].some(v => v.videoWidth >= 64)")
    if page.renderer == "nodes 2.0":
        page.wait_for_function("() => [...document.querySelectorAll('img')].some(i => i.naturalWidth === 960)")
    else:
        assert report["images"] == 1
    assert ours(page.errors) == []
    if PICTURES:
        fit(page)
        image = graph_only(picture(page))
        if page.renderer == "classic":
            save(image, ROOT / "docs" / "images" / "workflow.png", 1400)
            save(image, ROOT / "web" / "images" / "mini_template.jpg", 1200)
            entry = report["outputs"]["images"][0]
            save(Image.open(server.file(entry)).convert("RGB"), ROOT / "web" / "images" / "report.jpg", 960, 88)
        else:
            save(image, ROOT / "docs" / "images" / "workflow-nodes2.png", 1400)
