"""Finished chunks play on the node that samples in the real frontend before the run has ended, in both renderers."""

from __future__ import annotations

from typing import Any

from panels import RUN, idle
from test_frontend import MINI, open_template, ours

# A seed of its own for each renderer: what has been made already is not made again. A longer video than the template's:
# the page, drawn without a GPU beside the run, must have time to play while later chunks are made.
START = """seed => {
    const node = kind => app.graph.nodes.find(n => n.type === kind);
    node('RandomNoise').widgets.find(w => w.name === 'noise_seed').value = seed;
    node('EmptyARVideoLatent').widgets.find(w => w.name === 'length').value = 285;
    const sampler = node('FlowCacheARSampler');
    return sampler.inputs[sampler.findInputSlot('preview_vae')].link !== null;
}"""
# A video element that plays the sampler's newest file, and whether the graph's own result is there yet.
WATCH = """() => {
    const outputs = kind => app.nodeOutputs?.[app.graph.nodes.find(n => n.type === kind).id]?.images;
    const shown = outputs('SamplerCustomAdvanced')?.[0]?.filename;
    const plays = [...document.querySelectorAll('video')].some(
        v => v.videoWidth >= 64 && [v.src, ...[...v.querySelectorAll('source')].map(s => s.src)].some(
            address => address.includes('flowcache_')));
    return plays && shown ? {shown, done: Boolean(outputs('SaveVideo'))} : null;
}"""


def test_the_first_chunks_play_while_later_ones_run(page: Any) -> None:
    page.errors.clear()
    open_template(page, MINI)
    assert page.evaluate(START, len(page.renderer))
    page.get_by_test_id("queue-button").first.click()
    seen = page.wait_for_function(WATCH, polling=100, timeout=RUN).json_value()
    assert seen["shown"].startswith("flowcache_") and seen["shown"].endswith(".mp4")
    assert not seen["done"]
    assert ours(page.errors) == []
    page.evaluate("() => app.extensionManager.command.execute('Comfy.Interrupt')")
    idle(page)
