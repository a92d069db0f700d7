"""Sparse attention in runs of the bundled models: what stays dense, what is told, what it costs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from flowcache_core import mini, mini_magi
from flowcache_core.cost import MagiShape, WanShape
from flowcache_core.cost.counted import counted_events
from flowcache_core.denoiser import ChunkInput, Denoiser
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.errors import SettingError
from flowcache_core.kv.cache import KVCache
from flowcache_core.kv.importance_redundancy import ImportanceRedundancy
from flowcache_core.kv.recent import Recent
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.magi.guidance import GuidanceScales
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.guidance_refresh import GuidanceRefresh
from flowcache_core.plan import PLANS
from flowcache_core.report import document, text
from flowcache_core.report.events import AttentionDensity, Event, HeadDensities, StepTaken
from flowcache_core.report.record import Recorder, RunRecord
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.schedule import shifted
from flowcache_core.sparse import Calibrated, TopK, Window, XAttention
from flowcache_core.sparse.head_errors import Subject
from flowcache_core.sparse.head_table import HeadTable
from flowcache_core.sparse.mask_reuse import MaskReuse
from flowcache_core.sparse.settings import SparseSettings

CHUNKS, STEPS, LAYERS, HEADS = 4, 4, 6, 4
LOOSE = XAttention(block=16, stride=4, p=0.8)


@cache
def model() -> mini.MiniModel:
    return mini.load_mini()


def wan(prompt: str = "a red circle moving right") -> WanDenoiser:
    contexts = (model().encode_prompt(prompt), model().encode_prompt(""))
    return WanDenoiser(model().transformer, {0: contexts}, 3.0)


def settings(plan: str = "blockwise", chunks: int = CHUNKS, **changes: Any) -> EngineSettings:
    made = PLANS[plan].abreast(3, STEPS).plan(chunks * 3, STEPS)
    return EngineSettings(**({"plan": made, "schedule": shifted(STEPS, 3.0), "clean_pass": True} | changes))


def shape() -> WanShape:
    c = model().transformer.config
    return WanShape(c.dim, c.ffn_dim, c.num_layers, 8, c.text_dim, c.in_dim * 4)


def run(engine: EngineSettings, denoiser: Denoiser | None = None) -> tuple[Tensor, RunRecord]:
    recorder = Recorder.of(engine, shape().event)
    latents = generate(denoiser or wan(), engine, model().noise(len(engine.plan.chunks), 3), observe=recorder)
    return latents, recorder.record()


@cache
def dense() -> tuple[Tensor, RunRecord]:
    return run(settings())


def table(density: float = 0.6, heads: int = HEADS, model: str = "0" * 64) -> Calibrated:
    """Heads of which the later ones bear less."""
    subject = Subject(model, LAYERS, heads, 16, 4, (0.3, 0.8, 1.0))
    errors = tuple((0.4 + head, 0.1 + head / 9, 0.0) for head in range(LAYERS * heads))
    return Calibrated(density=density, table=HeadTable(subject, errors, ((0.2, 0.5, 1.0),) * (LAYERS * heads)))


# -- laws --------------------------------------------------------------------------------------------------------------


def silent(density: float) -> Calibrated:
    """Heads without an error in what was measured, whatever was left out."""
    subject = Subject("0" * 64, LAYERS, HEADS, 16, 4, (0.3, 0.96))
    return Calibrated(density=density, table=HeadTable(subject, ((0.0, 0.0),) * 24, ((0.2, 1.0),) * 24))


KEEPING = [XAttention(16, 1.0, 4), TopK(16, 1.0, 4), Window(16, 1.0), table(1.0), silent(1.0)]


@pytest.mark.parametrize("method", KEEPING, ids=lambda method: method.name)
def test_keeping_everything_is_the_dense_run_bit_by_bit(method: Any) -> None:
    sparse = SparseSettings(method, dense_chunks=0, dense_lasting=False, reuse=MaskReuse())
    latents, record = run(settings(sparse=sparse))
    assert torch.equal(latents, dense()[0])
    assert record.densities == () and record.flops == dense()[1].flops


def test_where_nothing_is_left_out_the_model_is_asked_as_without() -> None:
    """A denoiser that runs both branches under masks: at p 1 it leaves one out as in the dense run."""

    def made(sparse: SparseSettings | None) -> tuple[Tensor, list[int]]:
        denoiser = GuidanceRefresh(wan().transformer, wan().prompts, 3.0, every=2)
        latents, record = run(settings(chunks=2, sparse=sparse), denoiser)
        return latents, [step.branches for step in record.steps_taken]

    plain, branches = made(None)
    assert 1 in branches
    for sparse in (SparseSettings(replace(LOOSE, p=1.0), dense_chunks=0), SparseSettings(LOOSE, dense_chunks=2)):
        latents, asked = made(sparse)
        assert torch.equal(latents, plain) and asked == branches


def test_the_first_chunks_are_those_of_the_dense_run() -> None:
    latents, record = run(settings(sparse=SparseSettings(LOOSE)))
    same = [torch.equal(a, b) for a, b in zip(latents.split(3, 2), dense()[0].split(3, 2), strict=True)]
    assert same == [True, True, False, False]
    assert {(event.chunk, event.step) for event in record.densities} == {(c, s) for c in (2, 3) for s in range(STEPS)}


@pytest.mark.parametrize(
    ("sparse", "expected"),
    [
        (SparseSettings(LOOSE, dense_chunks=3), {(3, step) for step in range(STEPS)}),
        (SparseSettings(LOOSE, dense_steps=3), {(2, 3), (3, 3)}),
        (SparseSettings(LOOSE, dense_lasting=False), {*((c, s) for c in (2, 3) for s in range(STEPS)), (2, None)}),
    ],
)
def test_what_stays_dense_is_a_setting(sparse: SparseSettings, expected: set[tuple[int, int | None]]) -> None:
    assert {(event.chunk, event.step) for event in run(settings(sparse=sparse))[1].densities} == expected


class Spying:
    """Asks the model under ``sparse`` once more by definition: dense attention with what the mask leaves out at
    -inf.
    """

    def __init__(self) -> None:
        self.inner, self.worst, self.asked = wan(), 0.0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def compute(self, item: ChunkInput, cache: KVCache, **rest: Any) -> Any:
        inner = item.sparse
        if inner is None:  # what leaves nothing out is asked as without it; `asked` counts the others
            return self.inner.compute(item, cache, **rest)

        class Definition:
            def attend(spy, layer: int, branches: range, q: Any, k: Any, v: Any, full: Any, **more: Any) -> Any:
                out = inner.attend(layer, branches, q, k, v, full, **more)
                kept = LOOSE.mask(q, k, layer).kept.repeat_interleave(16, 2).repeat_interleave(16, 3)
                mask = torch.where(kept[:, :, : q.shape[2], : k.shape[2]], 0.0, -torch.inf)
                expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
                self.worst, self.asked = max(self.worst, float((out - expected).abs().max())), self.asked + 1
                return out

        return self.inner.compute(replace(item, sparse=Definition()), cache, **rest)


def test_every_layer_attends_by_its_mask() -> None:
    spy = Spying()
    run(settings(sparse=SparseSettings(LOOSE)), spy)  # type: ignore[arg-type]
    assert spy.worst < 1e-4 and spy.asked == 2 * STEPS * LAYERS


# -- together with the rest --------------------------------------------------------------------------------------------

TOGETHER: dict[str, dict[str, Any]] = {
    "staggered": {"plan": "staggered"},
    "window": {"plan": "window"},
    "step reuse": {"policy": StaticSchedule(warmup_steps=1, computed=(0, 3))},
    "bounded": {"kv": KVSettings(budget=2.0, compressor=Recent())},
    "importance": {"kv": KVSettings(budget=2.0, compressor=ImportanceRedundancy())},
    "fp8": {"kv": KVSettings(dtype=torch.float8_e4m3fn)},
    "prefix": {},
}


@pytest.mark.parametrize("name", TOGETHER)
@pytest.mark.parametrize("reuse", [None, MaskReuse(), MaskReuse(across_chunks=True)], ids=["fresh", "again", "across"])
def test_it_goes_with_everything_else(name: str, reuse: MaskReuse | None) -> None:
    engine = settings(**TOGETHER[name], sparse=SparseSettings(LOOSE, reuse=reuse))
    latents, record = run(engine)
    whole, plain = run(replace(engine, sparse=None))
    assert latents.isfinite().all() and not torch.equal(latents, whole)
    assert len(record.densities) > 0 and all(0.05 < event.density < 1 for event in record.densities)
    assert [step.action for step in record.steps_taken] == [step.action for step in plain.steps_taken]
    assert record.flops is not None and plain.flops is not None and record.flops < plain.flops


@pytest.mark.parametrize("guided", [False, True])
def test_magi_attends_sparsely_too(guided: bool) -> None:
    bundled = mini_magi.load_mini_magi()
    denoiser = bundled.denoiser(["a red circle moving right"], 1.0)
    if guided:
        denoiser = replace(denoiser, guidance=GuidanceScales(), step_times=())
    events: list[Event] = []
    noise, sparse = bundled.noise(4, 3), SparseSettings(LOOSE, dense_chunks=1, reuse=MaskReuse())
    engine = bundled.settings(4, 4)
    latents = generate(denoiser, replace(engine, sparse=sparse), noise, observe=events.append)
    assert not torch.equal(latents, generate(denoiser, engine, noise))
    same = replace(engine, sparse=replace(sparse, method=replace(LOOSE, p=1.0)))
    assert torch.equal(generate(denoiser, same, noise), generate(denoiser, engine, noise))
    shares = [event for event in events if isinstance(event, AttentionDensity)]
    assert {event.chunk for event in shares} == {1, 2, 3} and all(event.density < 1 for event in shares)


# -- what is told and what it costs ------------------------------------------------------------------------------------


def test_densities_are_told_by_layer_head_and_chunk() -> None:
    record = run(settings(sparse=SparseSettings(TopK(16, 0.75, 4), dense_steps=1)))[1]
    inner = record.densities[0].density
    assert [told.chunk for told in record.head_densities] == [0, 1, 2, 3]
    for told in record.head_densities:
        assert len(told.density) == LAYERS and all(len(row) == HEADS for row in told.density)
    assert all(share == 1 for row in record.head_densities[1].density for share in row)
    mean = sum(map(sum, record.head_densities[2].density)) / LAYERS / HEADS
    assert mean == pytest.approx((1 + (STEPS - 1) * inner) / STEPS, abs=1e-3)  # the first step was dense


def test_a_density_of_the_whole_run_is_met() -> None:
    record = run(settings(sparse=SparseSettings(TopK(16, 0.7, 4), dense_chunks=1)))[1]
    pairs = {chunk: 48 * 48 * (chunk + 1) for chunk in range(CHUNKS)}
    shares = {event.chunk: event.density for event in record.densities}
    whole = sum(pairs[chunk] * shares.get(chunk, 1.0) for chunk in pairs) / sum(pairs.values())
    assert whole == pytest.approx(0.7, abs=0.06)  # rows keep whole blocks


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("budget", [None, 1.0, 2.5])
@pytest.mark.parametrize("at_finish", [False, True])
def test_a_density_is_met_whatever_of_the_history_is_seen(plan: str, budget: float | None, at_finish: bool) -> None:
    kv = KVSettings(budget=budget, compressor=None if budget is None else Recent(), at_finish=at_finish)
    made = PLANS[plan].abreast(3, 8).plan(30, 8)
    sparse = SparseSettings(TopK(16, 0.6, 4), dense_chunks=1)
    engine = EngineSettings(made, shifted(8, 3.0), kv=kv, sparse=sparse, clean_pass=True)
    events, _ = counted_events(shape(), [engine], 1600, 1)
    shares = {(event.chunk, event.step): event.density for event in events if isinstance(event, AttentionDensity)}
    steps = [event for event in events if isinstance(event, StepTaken)]
    computed = sum(one.tokens * one.context_tokens * shares.get((one.chunk, one.step), 1.0) for one in steps)
    assert computed == pytest.approx(0.6 * sum(one.tokens * one.context_tokens for one in steps), rel=1e-6)


def test_flops_are_those_of_kept_blocks_and_of_choosing_them() -> None:
    record = run(settings(sparse=SparseSettings(LOOSE)))[1]
    saved = sum(
        event.branches * (1 - event.density - 0.125) * shape().attention(48, 48 * (event.chunk + 1))
        for event in record.densities
    )
    full = dense()[1].flops
    assert record.flops is not None and full is not None and record.flops == pytest.approx(full - saved)
    reused = run(settings(sparse=SparseSettings(LOOSE, reuse=MaskReuse(drift=1e9))))[1]
    assert [event.overhead for event in reused.densities] == [0.125, 0, 0, 0, 0.125, 0, 0, 0]
    assert [event.masks_served for event in reused.densities] == [0, 48, 48, 48, 0, 48, 48, 48]
    magi = MagiShape(64, 128, 2, 64)
    event = AttentionDensity(0, 1, 0, 2, 48, 96, 0.25, 0.05, 1, 0)
    assert magi.event(event) == pytest.approx(-2 * 0.7 * magi.attention(48, 96))


def test_the_report_states_it() -> None:
    record = run(settings(sparse=SparseSettings(LOOSE, reuse=MaskReuse())))[1]
    written = document.to_json(record)
    assert written["densities"][0]["density"] == record.densities[0].density
    assert written["head_densities"][3]["chunk"] == 3
    assert "self-attention" in text.summary(record) and "masks" in text.summary(record)
    assert "self-attention" not in text.summary(dense()[1])


def test_a_per_head_table_gives_heads_their_own_density() -> None:
    record = run(settings(sparse=SparseSettings(table(0.5))))[1]
    told: HeadDensities = record.head_densities[3]
    flat = [share for row in told.density for share in row]
    assert min(flat) < 0.35 and max(flat) > 0.5


def test_masks_that_serve_again_are_counted_as_they_are_held() -> None:
    spec = wan().kv_spec(model().noise(CHUNKS, 0))
    for reuse, most in ((None, 0), (MaskReuse(), 1), (MaskReuse(across_chunks=True), 1 + STEPS)):
        sparse, plan = SparseSettings(LOOSE, reuse=reuse), settings().plan
        assert sparse.memory(spec, plan, 192) == most * 2 * LAYERS * HEADS * 3 * 12


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"sparse": SparseSettings()}, "block", "48"),
        ({"sparse": SparseSettings(TopK(16, 0.2, 4))}, "density", "dense take alone"),
        ({"sparse": SparseSettings(table(0.35))}, "density", "sparsest"),
        ({"sparse": SparseSettings(table(heads=5))}, "table", "6 layers of 4 heads"),
        ({"sparse": SparseSettings(XAttention(16, [[0.5] * 5] * 6, 4))}, "p", "6 layers of 4 heads"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(SettingError) as error:
        run(settings(**changes))
    assert error.value.field == field and said in str(error.value)


def test_bidirectional_attention_is_refused() -> None:
    with pytest.raises(SettingError, match="sparse"):
        settings(attention="bidirectional", clean_pass=False, sparse=SparseSettings(LOOSE))


def test_a_video_too_short_gets_a_note() -> None:
    assert "no context is longer" in " ".join(settings(chunks=2, sparse=SparseSettings(LOOSE)).notes())
    assert settings(sparse=SparseSettings(LOOSE)).notes() == ()


def test_an_engine_that_cannot_is_named_and_the_run_is_dense() -> None:
    latents, record = run(settings(sparse=SparseSettings(LOOSE, engine="sparge")))
    assert torch.equal(latents, dense()[0])
    assert any("stays dense" in note for note in record.notes)
