"""What somebody does who has just installed the pack: run, move the slider, choose a wrong model, put it right."""

from __future__ import annotations

from typing import Any

from panels import idle, look, near, panel_when, queue
from test_errors import change, run, said_of
from test_frontend import MINI, open_template, ours

REUSE = "FlowCacheChunkwiseReuse"
VIDEOS = """() => app.nodeOutputs?.[app.graph.nodes.find(n => n.type === 'SaveVideo').id]?.images?.[0]?.filename"""


def run_to_the_end(page: Any) -> dict[str, Any]:
    """The run as the reuse node shows it; its video has come."""
    before = page.evaluate(VIDEOS)
    queue(page)
    idle(page)
    page.wait_for_function(f"before => {{ const now = ({VIDEOS})(); return now && now !== before; }}", arg=before)
    near(page, REUSE)
    shown: dict[str, Any] = panel_when(page, "p.run?.complete && p.shown", REUSE)
    return shown


def test_a_newcomer_runs_moves_the_slider_errs_and_mends(page: Any) -> None:
    page.errors.clear()
    open_template(page, MINI)
    change(page, "EmptyARVideoLatent", "length", 33)  # a newcomer has more time than this test
    change(page, "RandomNoise", "noise_seed", 900 + len(page.renderer))
    first = run_to_the_end(page)
    assert "saved about" in first["headline"], first
    look(page, "newcomer-first")
    change(page, REUSE, "preset.fidelity", 0.0)
    faster = run_to_the_end(page)
    assert faster["run"]["computed"] < first["run"]["computed"], faster
    look(page, "newcomer-faster")
    # The other bundled model samples in another way. The sentence says what to do, and on which node.
    change(page, "FlowCacheMiniModel", "model", "magi")
    said = said_of(page, run(page))
    look(page, "newcomer-error")
    assert "accepted" in said and ("Basic Guider" in said or "MAGI-1" in said), said
    change(page, "FlowCacheMiniModel", "model", "wan")
    change(page, "RandomNoise", "noise_seed", 950 + len(page.renderer))
    mended = run_to_the_end(page)
    assert mended["run"]["computed"] == faster["run"]["computed"]
    assert ours(page.errors) == []
