"""How much every step sees, known before a run: as a run with the same settings then sees it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowcache_core.engine import EngineSettings, generate
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.sink_window import SinkWindow
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.plan import PLANS
from flowcache_core.report.events import AttentionDensity, StepTaken
from flowcache_core.schedule import shifted
from flowcache_core.sparse import TopK
from flowcache_core.sparse.cost import overall_density
from flowcache_core.sparse.settings import SparseSettings

CHUNKS, FRAMES, TOKENS, STEPS = 6, 3, 4, 2


def small() -> WanDenoiser:
    torch.manual_seed(0)
    config = WanConfig(dim=48, ffn_dim=32, num_layers=2, num_heads=2, text_dim=8, freq_dim=16)
    return WanDenoiser(WanTransformer(config).eval(), {0: [torch.randn(1, 4, 8)]}, 1.0)


def events(plan: str, kv: KVSettings, recache: frozenset[int], sparse: SparseSettings | None = None) -> list[Any]:
    made = PLANS[plan].abreast(FRAMES, STEPS).plan(CHUNKS * FRAMES, STEPS)
    settings = EngineSettings(made, shifted(STEPS, 5.0), kv=kv, clean_pass=True, recache=recache, sparse=sparse)
    found: list[Any] = []
    generate(small(), settings, torch.randn(1, 16, CHUNKS * FRAMES, 4, 4), observe=found.append)
    return found


@pytest.mark.parametrize(
    ("plan", "kv", "recache"),
    [
        ("blockwise", KVSettings(), frozenset({4})),
        ("blockwise", KVSettings(2.5, Recent()), frozenset()),
        ("blockwise", KVSettings(2.5, Recent()), frozenset({3, 4})),
        ("blockwise", KVSettings(2.5, Recent(), at_finish=True), frozenset({4})),
        ("blockwise", KVSettings((1.5, 2.5), Recent()), frozenset({4})),
        ("blockwise", KVSettings(2.5, SinkWindow(sink=1.0)), frozenset({4})),
        ("staggered", KVSettings(1.0, Recent()), frozenset()),
    ],
)
def test_it_is_what_a_run_sees(plan: str, kv: KVSettings, recache: frozenset[int]) -> None:
    made = PLANS[plan].abreast(FRAMES, STEPS).plan(CHUNKS * FRAMES, STEPS)
    known: dict[tuple[int, int], int] = {}
    for _, chunk, step, context in SparseSettings().contexts(made, TOKENS, kv, recache):
        known[chunk.index, step] = max(context, known.get((chunk.index, step), 0))
    taken = [event for event in events(plan, kv, recache) if isinstance(event, StepTaken)]
    assert known == {(event.chunk, event.step): event.context_tokens for event in taken}


def test_history_computed_again_counts_where_a_density_is_asked_for() -> None:
    """Whole chunks alone are computed again: what begins then sees two chunks of history, not two and a half."""
    kv, recache = KVSettings(2.5, Recent()), frozenset({4})
    settings = SparseSettings(TopK(4, 0.7, 2), dense_chunks=3)
    plan = PLANS["blockwise"].abreast(FRAMES, STEPS).plan(CHUNKS * FRAMES, STEPS)
    run = events("blockwise", kv, recache, settings)
    assert {event.chunk for event in run if isinstance(event, AttentionDensity)} == {3, 5}
    assert settings.sparse_steps(plan, TOKENS, kv, recache) == {3: (0, 1), 5: (0, 1)}
    forwards = tuple(settings.forwards(plan, TOKENS, kv, recache))
    method = settings.settled(plan, TOKENS, kv, recache)
    assert isinstance(method, TopK) and overall_density(forwards, method.density) == pytest.approx(0.7)
    other = settings.settled(plan, TOKENS, kv)
    assert isinstance(other, TopK) and other.density > method.density
