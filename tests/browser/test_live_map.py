"""The map of a run grows on the node that samples, in the real frontend and both of its renderers.

No test waits for a moment in the middle of a short run, which a quick machine is past before anybody looks: messages
are written down as they come, and what needs a run that is still going on gets one that is long and is interrupted.
"""

from __future__ import annotations

from typing import Any

import pytest
from comfy_server import ComfyServer
from panels import RUN, RUNNING, idle, look, near, panel, panel_when, queue, told, write_down
from PIL import Image
from test_errors import change
from test_frontend import MINI, PICTURES, ROOT, open_template, ours, picture

COMPUTED, REUSED = "0072b2", "f5c77e"
LONG = 1021  # frames: 86 chunks, as many as the node takes


WIDE = 480  # pixels of README's picture
SHORT = 93 if PICTURES else 57  # frames: 8 chunks or 5


def start(page: Any, seed: int, length: int = SHORT) -> None:
    """The mini template with a seed of its own."""
    open_template(page, MINI)
    change(page, "RandomNoise", "noise_seed", seed + len(page.renderer))
    change(page, "EmptyARVideoLatent", "length", length)
    write_down(page)
    queue(page)


def test_it_grows_and_stays(page: Any, server: ComfyServer) -> None:
    page.errors.clear()
    start(page, 100)
    idle(page)
    messages = [entry["run"] for entry in told(page)]
    done = [run["done"] for run in messages]
    assert len(messages) > 3 and done == sorted(done) and messages[-1]["complete"], (done, page.errors)
    pending = [sum(row.count(" ") for row in run["rows"]) for run in messages]
    assert pending == sorted(pending, reverse=True) and pending[0] > pending[-1] == 0
    # What was drawn in the meantime: of messages that followed each other faster than frames, the later one.
    texts = [entry["text"] for entry in told(page) if entry["text"] and not entry["run"]["complete"]]
    assert any("left" in text and "K/V" in text for text in texts), texts
    assert [run["finished"] for run in messages][-1] == messages[-1]["chunks"] == len(messages[-1]["rows"])
    near(page, RUNNING)
    ended = panel_when(page, "p.run.complete && p.shown && !p.cut")
    look(page, "live-map-ended")
    assert ended["run"]["rows"][0].count(".") < ended["run"]["rows"][1].count(".")
    assert ended["colours"][COMPUTED] > 100 and ended["colours"][REUSED] > 100, ended["colours"]
    assert "saved" in ended["text"] and "dB" in ended["text"], ended["text"]
    assert ours(page.errors) == []
    if PICTURES and page.renderer == "classic":
        save_replay(page, messages)


def save_replay(page: Any, messages: list[dict[str, Any]]) -> None:
    """README's first picture: the node that sampled, shown its own messages once more, with its video."""
    near(page, RUNNING, 1.0)
    page.locator("video").first.wait_for()
    shots = []
    shown = [*messages[:: max(1, len(messages) // 30)], *messages[-1:] * 4]
    for number, message in enumerate(shown):
        page.evaluate(
            """([kind, run, share]) => {
                const node = app.graph.nodes.find(n => n.type === kind);
                node.widgets.find(w => w.name === 'flowcache_run').flowcache.tell({run});
                for (const video of document.querySelectorAll('video')) {
                    video.pause();
                    video.currentTime = share * (video.duration || 0);
                }
            }""",
            [RUNNING, message, number / len(shown)],
        )
        page.wait_for_timeout(250)
        shots.append(picture(page))
    left, top, width, height = page.evaluate(
        """kind => {
            const node = app.graph.nodes.find(n => n.type === kind), ds = app.canvas.ds;
            const box = app.canvas.canvas.getBoundingClientRect();
            return [box.left + (node.pos[0] + ds.offset[0]) * ds.scale,
                box.top + (node.pos[1] - 30 + ds.offset[1]) * ds.scale,
                node.size[0] * ds.scale, (node.size[1] + 30) * ds.scale];
        }""",
        RUNNING,
    )
    whole = [shot.crop((int(left), int(top), int(left + width) + 1, int(top + height) + 1)) for shot in shots]
    frames = [one.resize((WIDE, one.height * WIDE // one.width), Image.Resampling.LANCZOS) for one in whole]
    frames[0].save(
        ROOT / "docs" / "images" / "live.webp",
        "WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=300,
        loop=0,
        quality=70,
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_themes(page: Any, theme: str) -> None:
    """After the test above: its run is complete."""
    page.evaluate("theme => app.extensionManager.setting.set('Comfy.ColorPalette', theme)", theme)
    page.wait_for_timeout(500)
    page.evaluate("async () => await app.loadGraphData(app.rootGraph.serialize())")
    near(page, RUNNING)
    found = panel_when(page, "p.run.complete && p.shown && !p.cut && Object.keys(p.colours).length")
    look(page, f"live-map-{theme}")
    assert found["colours"][COMPUTED] > 100
    saved = page.evaluate("() => JSON.stringify(app.rootGraph.serialize())")
    assert "flowcache_run" not in saved


def test_it_survives_a_reload_in_the_middle_and_an_interrupt_leaves_nothing(page: Any, server: ComfyServer) -> None:
    page.errors.clear()
    start(page, 200, LONG)
    panel_when(page, "p.run.done > 3")
    drawing_is_bound_to_frames(page)
    before = panel_when(page, "p.run")["run"]
    assert not before["complete"]
    page.reload(wait_until="commit")
    page.wait_for_function("window.app?.extensionManager && window.app?.rootGraph?.nodes?.length > 4", timeout=RUN)
    after = panel_when(page, "p.run")["run"]
    assert after["done"] >= before["done"] and not after["complete"] and after["prompt"] == before["prompt"]
    panel_when(page, f"p.run.done > {after['done']}")  # it goes on
    near(page, RUNNING)
    look(page, "live-map-reloaded")
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Interrupt')")
    idle(page)
    page.wait_for_function(
        "kind => !app.graph.nodes.find(n => n.type === kind).widgets?.some(w => w.name === 'flowcache_run')",
        arg=RUNNING,
    )
    assert panel(page) is None
    client = page.evaluate("() => sessionStorage.getItem('clientId')")
    assert [run for run in server.get(f"/flowcache/runs?client={client}") if not run["complete"]] == []


def drawing_is_bound_to_frames(page: Any) -> None:
    """What the panel costs the page: no frame of a long run waits for it."""
    spent = page.evaluate(
        """async kind => {
            const panel = app.graph.nodes.find(n => n.type === kind).widgets
                .find(w => w.name === 'flowcache_run').flowcache;
            const paint = panel.paint;
            let [spent, times, frames] = [0, 0, 0];
            panel.paint = function () {
                const begun = performance.now();
                paint.apply(this, arguments);
                spent += performance.now() - begun;
                times++;
            };
            for (let i = 0; i < 500; i++) panel.tell({run: {...panel.state.run}});
            for (const end = performance.now() + 3000; performance.now() < end; frames++)
                await new Promise(requestAnimationFrame);
            panel.paint = paint;
            return {spent, times, frames};
        }""",
        RUNNING,
    )
    assert 0 < spent["times"] <= spent["frames"] + 1 and spent["times"] < 100, spent
    # Of 3000 ms; where the page has hardly drawn in them, others had the machine.
    assert spent["spent"] < 300 or spent["frames"] < 60, spent
