"""A real ComfyUI server and its real frontend in headless Chromium."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfy_server import ComfyServer, comfy_server, lay_out

HOW_TO = "the browser tests need COMFYUI_DIR, Chromium (or CHROMIUM=path) and pip install playwright"
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --mute-audio"
).split()
# For the pictures the window is so wide that the frontend draws the text on nodes.
PICTURES = bool(os.environ.get("FLOWCACHE_PICTURES"))
SIZE = {"width": 3200, "height": 1500} if PICTURES else {"width": 1600, "height": 900}
PATIENCE = 60_000  # ms, for what nothing computes; waits for a run have a longer one of their own
LOADING = 180_000


def find_host() -> Path | None:
    places = [Path(os.environ.get("COMFYUI_DIR") or Path.home() / "comfy" / "ComfyUI")]
    return next((place for place in places if (place / "main.py").is_file()), None)


def find_chromium() -> str | None:
    named = os.environ.get("CHROMIUM")
    return named or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def find_frontends() -> dict[str, tuple[str, ...]]:
    """Name -> options of the server: the frontend that the host pins, and an unpacked ``comfyui-frontend-package``
    where FLOWCACHE_FRONTEND names its folder, or a folder that has it.
    """
    found: dict[str, tuple[str, ...]] = {"pinned": ()}
    if named := os.environ.get("FLOWCACHE_FRONTEND"):
        folder = Path(named)
        static = folder if (folder / "index.html").is_file() else folder / "comfyui_frontend_package" / "static"
        if not (static / "index.html").is_file():
            raise FileNotFoundError(f"FLOWCACHE_FRONTEND: no index.html in {static}")
        found["newest"] = ("--front-end-root", str(static))
    return found


HOST, CHROMIUM, FRONTENDS = find_host(), find_chromium(), find_frontends()


@pytest.fixture(scope="session", params=FRONTENDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    if HOST is None or CHROMIUM is None:
        pytest.skip(HOW_TO)
    base = tmp_path_factory.mktemp("comfy")
    lay_out(base)
    if PICTURES:
        name_checkpoints(base / "models")
        (base / "input" / "my_video.mp4").touch()  # what StreamDiffusionV2's template asks for
    with comfy_server(HOST, Path(sys.executable), base, *FRONTENDS[request.param]) as running:
        yield running


# Of MAGI-1, whose official folders no template can download as files.
MAGI = (
    "diffusion_models/4.5B_distill/inference_weight.distill/model-00001-of-00002.safetensors",
    "vae/magi/diffusion_pytorch_model.safetensors",
    "text_encoders/special_tokens.npz",
)


def name_checkpoints(folder: Path) -> None:
    """Empty files under the names that templates ask for, so that no node is drawn as lacking one."""
    for name in MAGI:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    for template in (Path(__file__).resolve().parents[2] / "workflows").glob("*.json"):
        for node in json.loads(template.read_text(encoding="utf-8"))["nodes"]:
            for model in node.get("properties", {}).get("models", []):
                path = folder / model["directory"] / model["name"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()


@pytest.fixture(scope="session")
def browser(server: ComfyServer) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason=HOW_TO)
    with playwright.sync_playwright() as p:
        running = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="session")
def context(browser: Any) -> Iterator[Any]:
    """One for all pages: the frontend's files are fetched and compiled once."""
    made = browser.new_context(viewport=SIZE, device_scale_factor=1)
    yield made
    made.close()


@pytest.fixture(scope="module", params=["classic", "nodes 2.0"])
def page(request: pytest.FixtureRequest, context: Any, server: ComfyServer) -> Iterator[Any]:
    """The frontend, loaded, in one of its two renderers. ``page.errors``: what the console called an error."""
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.errors = []
    page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(server.url, wait_until="commit", timeout=LOADING)
    page.wait_for_function(
        "window.app?.extensionManager && 'FlowCacheReport' in (window.LiteGraph?.registered_node_types ?? {})"
        " && window.app.graph && document.querySelector('[data-testid=queue-button]')",
        timeout=LOADING,
    )
    page.wait_for_timeout(1000)
    vue = request.param == "nodes 2.0"
    page.evaluate("vue => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)", vue)
    page.evaluate("() => app.extensionManager.setting.set('Comfy.Minimap.Visible', false)")
    page.wait_for_timeout(500)
    page.errors.clear()  # of the empty start page
    page.renderer = request.param
    yield page
    page.evaluate("() => localStorage.clear()")  # the next page begins with no graph of this one
    page.close()
