"""Runs whose values stop being finite: found at the right step, told everywhere, nothing lost, no device waited for."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dummy import DummyDenoiser
from recorded import painted, record

from benchmarks import __main__ as bench
from flowcache_core import __main__ as command_line
from flowcache_core.denoiser import ChunkInput, ChunkOutput
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.engine.finite import FiniteWatch
from flowcache_core.errors import NotFiniteError, SettingError, require_finite_values
from flowcache_core.kv.settings import KVSettings
from flowcache_core.models.magi.denoiser import MagiDenoiser
from flowcache_core.models.wan.config import WanConfig
from flowcache_core.models.wan.denoiser import WanDenoiser
from flowcache_core.models.wan.transformer import WanTransformer
from flowcache_core.plan import blockwise, staggered, window
from flowcache_core.plan.base import Plan
from flowcache_core.report import document, figure, text
from flowcache_core.report.events import Event, NotFinite, RunFinished, RunStarted, StepTaken
from flowcache_core.report.progress import Progress
from flowcache_core.report.record import Recorder, RunRecord
from flowcache_core.report.refusing import refusing
from flowcache_core.report.video import pixels
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.distance import LatentDistance, PatchDistance, TimeDistance
from flowcache_core.reuse.easycache import EasyCache
from flowcache_core.reuse.forecast import Forecast
from flowcache_core.reuse.never import Never
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.reuse.teacache import TeaCache
from flowcache_core.schedule import shifted

STEPS = 8
PLAN_ROWS = {
    "blockwise": lambda: blockwise(15, 3, STEPS),
    "staggered": lambda: staggered(15, 3, STEPS, 4),
    "window": lambda: window(15, 3, STEPS, 2),
}
Spoil = Callable[[ChunkInput, torch.Tensor], torch.Tensor]


@dataclass
class Spoiled(DummyDenoiser):
    """``spoil`` changes the velocities ``[branches, B, ...]`` that the model answers; ``after`` what guidance makes."""

    spoil: Spoil = lambda item, velocity: velocity
    after: Spoil = lambda item, velocity: velocity

    def compute(self, item, cache, *, keep_residual=False):
        output = super().compute(item, cache, keep_residual=keep_residual)
        return replace(output, velocity=self.spoil(item, output.velocity))

    def guide(self, velocity, item):
        return self.after(item, velocity[0])


def at(chunk: int, step: int, value: float = math.nan, where: Any = ...) -> Spoil:
    """One value of the velocity at this step replaced."""

    def spoil(item: ChunkInput, velocity: torch.Tensor) -> torch.Tensor:
        if (item.chunk.index, item.step) == (chunk, step):
            velocity = velocity.clone()
            velocity[where].view(-1)[5] = value
        return velocity

    return spoil


def run(denoiser: DummyDenoiser, plan: Plan, batch: int = 1, **settings: Any) -> tuple[torch.Tensor, RunRecord]:
    chosen = EngineSettings(plan, shifted(plan.steps, 3.0), **settings)
    recorder = Recorder.of(chosen)
    noise = torch.randn(batch, 2, plan.frames, 2, 2, generator=torch.Generator().manual_seed(0))
    return generate(denoiser, chosen, noise, observe=recorder), recorder.record()


def places(made: RunRecord) -> list[tuple[int, int]]:
    return [(event.chunk, event.step) for event in made.not_finite]


# -- where it began ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLAN_ROWS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_found_at_its_step(name: str, value: float) -> None:
    plan = PLAN_ROWS[name]()
    _, made = run(Spoiled(spoil=at(2, 3, value)), plan)
    assert places(made) == [(2, step) for step in range(3, STEPS)]  # the chunk stays so, the others do not look at it
    first = made.not_finite[0]
    assert first.tick == next(s.tick for s in made.steps_taken if (s.chunk, s.step) == (2, 3))
    assert (first.part, first.branches, first.videos) == ("velocity", (), ())
    assert made.not_finite[1].part == "latents"  # the model answers a finite velocity again
    assert [row.count("not finite") for row in made.kinds] == [0, 0, STEPS - 3, 0, 0]
    assert made.computed_steps == made.total_steps == 5 * STEPS and made.seconds is not None


@pytest.mark.parametrize("name", PLAN_ROWS)
def test_a_good_run_tells_nothing(name: str) -> None:
    _, made = run(DummyDenoiser(), PLAN_ROWS[name](), kv=KVSettings(budget=1.0))
    assert made.not_finite == () and made.fault is None
    assert "finite" not in text.summary(made) and document.to_json(made)["fault"] is None


def test_the_first_of_several_is_the_one_that_came_first_in_time() -> None:
    """In the staggered plan chunk 1 breaks before chunk 0 does."""
    both = [at(1, 1), at(0, 6)]
    spoiled = Spoiled(spoil=lambda item, velocity: both[1](item, both[0](item, velocity)))
    _, made = run(spoiled, PLAN_ROWS["staggered"]())
    assert places(made)[0] == (1, 1) and "from chunk 1, step 1 on" in str(made.fault)


def test_one_branch_and_one_video_of_a_batch_are_named() -> None:
    _, made = run(Spoiled(branches=3, spoil=at(1, 2, where=(2, 1))), PLAN_ROWS["blockwise"](), batch=2)
    assert places(made) == [(1, 2)]  # guidance takes branch 0 here, so that the latents stay good
    assert (made.not_finite[0].branches, made.not_finite[0].videos) == ((2,), (1,))
    said = "values were not finite from chunk 1, step 2 on (in the velocity of branch 2, in video 1 of the batch)"
    assert str(made.fault).startswith(said) and str(made.fault).endswith("in 1 of 40 steps")


def test_latents_alone_can_be_what_is_not_finite() -> None:
    _, made = run(Spoiled(after=at(0, 4, math.inf, where=0)), PLAN_ROWS["blockwise"](), batch=3)
    assert places(made) == [(0, step) for step in range(4, STEPS)]
    assert (made.not_finite[0].part, made.not_finite[0].branches, made.not_finite[0].videos) == ("latents", (), (0,))
    assert "in the latents after the step, in video 0 of the batch" in str(made.fault)


def test_a_window_pass_is_watched_too() -> None:
    class Broken(DummyDenoiser):
        def window(self, latents, timesteps, items):
            velocity = super().window(latents, timesteps, items)
            if 0 < timesteps[3] < 500:
                velocity[:, :, :, 3:6] = math.nan
            return velocity

    _, made = run(Broken(), staggered(9, 3, STEPS, 2), attention="bidirectional")
    late = [step for step, timestep in enumerate(shifted(STEPS, 3.0).timesteps) if timestep < 500]
    assert late and places(made) == [(1, step) for step in late]


def test_reused_steps_of_a_broken_one_are_marked_as_well() -> None:
    policy = StaticSchedule(computed=(0, 1, 4, 7))
    for quantity in (Forecast(1, correction=0), Forecast(1, correction=2)):
        _, made = run(Spoiled(spoil=at(1, 1)), PLAN_ROWS["blockwise"](), policy=policy, quantity=quantity)
        assert places(made) == [(1, step) for step in range(1, STEPS)]
        assert made.reused_steps == 5 * 4


def test_windows_of_a_long_video_count_on() -> None:
    first, second = blockwise(6, 3, 4), blockwise(9, 3, 4, prefix_frames=3)
    recorder = Recorder()
    for plan, spoil in ((first, at(9, 9)), (second, at(1, 2))):
        shape = (1, 2, plan.frames, 2, 2)
        prefix = torch.zeros(1, 2, 3, 2, 2) if plan.prefix_frames else None
        settings = EngineSettings(plan, shifted(4, 3.0))
        generate(Spoiled(spoil=spoil), settings, torch.zeros(shape), prefix=prefix, observe=recorder)
    made = recorder.record()
    assert places(made)[0] == (3, 2) and made.kinds[3] == ["computed", "computed", "not finite", "not finite"]
    assert made.not_finite[0].tick == next(s.tick for s in made.steps_taken if (s.chunk, s.step) == (3, 2))


# -- nothing waits for the device -------------------------------------------------------------------------------------


READS = ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every time values are read out of a tensor, which waits for its device; flags count as being on one."""
    seen: list[str] = []
    for name in READS:
        original = getattr(torch.Tensor, name)

        def reading(self: torch.Tensor, *args: Any, name: str = name, original: Any = original) -> Any:
            seen.append(name)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, reading)
    monkeypatch.setattr("flowcache_core.background.OnItsWay.here", False)
    return seen


def test_noting_steps_reads_no_value(reads: list[str]) -> None:
    watch, latents = FiniteWatch(), torch.zeros(2, 4, 3, 2, 2)
    for step in range(20):
        watch.note((step, 0, step), latents[None].expand(3, *latents.shape), latents)
        watch.send()
        assert list(watch.arrived()) == []
    assert reads == []
    assert list(watch.rest()) == [] and len(reads) == 20


class Quiet(DummyDenoiser):
    """NaN at the first step of chunk 1, and nothing read back for a test's sake."""

    def compute(self, item, cache, *, keep_residual=False):
        value = torch.zeros(1, 2, item.chunk.frames * 2, 4)
        for layer in range(2):
            cache.write(layer, range(1), item.chunk, value, value)
        return ChunkOutput(at(1, 0)(item, torch.ones(1, *item.latents.shape)))


@pytest.mark.parametrize("name", PLAN_ROWS)
def test_between_start_and_end_only_the_policy_reads_once_a_tick(reads: list[str], name: str) -> None:
    plan = PLAN_ROWS[name]()
    for policy, most in ((Never(), 0), (Chunkwise(threshold=0.3, warmup_steps=2), 1)):
        settings, at_tick, seen = EngineSettings(plan, shifted(STEPS, 3.0), policy=policy), {}, []

        def observe(event: Event, at_tick: dict[int, int] = at_tick, seen: list[Event] = seen) -> None:
            seen.append(event)
            if isinstance(event, StepTaken):
                at_tick[event.tick] = len(reads)

        generate(Quiet(), settings, torch.ones(1, 2, 15, 2, 2), observe=observe)
        counts = [at_tick[tick] for tick in sorted(at_tick)]
        assert all(after - before <= most for before, after in zip(counts, counts[1:], strict=False))
        kinds = [type(event) for event in seen]
        assert kinds.index(NotFinite) > len(seen) - 2 - STEPS  # here known at the end only, and told before it
        assert kinds[-1] is RunFinished


def test_values_that_are_on_no_device_are_left_alone() -> None:
    watch = FiniteWatch()
    watch.note((0, 0, 0), torch.zeros(1, 1, 2, device="meta"), torch.zeros(1, 2, device="meta"))
    watch.send()
    assert list(watch.rest()) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_no_step_waits_and_all_is_known_at_the_end() -> None:
    watch, good = FiniteWatch(), torch.zeros(2, 4, 3, 8, 8, device="cuda")
    bad = good.clone()
    bad[1, 2, 1, 3, 4] = math.nan
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(30):
            latents = bad if step >= 17 else good
            watch.note((step, 0, step), latents[None], latents)
            watch.send()
            list(watch.arrived()) if step < 17 else None
    finally:
        torch.cuda.set_sync_debug_mode("default")
    told = list(watch.rest())
    assert [event.step for event in told] == list(range(17, 30)) and told[0].videos == (1,)


# -- policies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["blockwise", "staggered"])
@pytest.mark.parametrize(
    "policy",
    [Chunkwise(threshold=1e6, warmup_steps=1, distance=LatentDistance()),
     Chunkwise(threshold=1e6, warmup_steps=1, distance=PatchDistance(), inclusive=False),
     TeaCache(threshold=1e6, warmup_steps=1, distance=LatentDistance()),
     EasyCache(threshold=1e6, warmup_steps=1)],
    ids=lambda policy: policy.name,
)  # fmt: skip
def test_a_distance_that_is_not_finite_never_reuses(policy, name: str, value: float) -> None:
    """And what it leaves behind does not spoil the chunks after it."""
    _, made = run(Spoiled(spoil=at(1, 2, value)), PLAN_ROWS[name](), policy=policy)
    for step in made.steps_taken:
        numbers = [n for n in (step.distance, step.accumulated) if n is not None]
        assert step.action == "compute" or all(map(math.isfinite, numbers))
    broken = set(places(made))
    assert not any(s.action == "reuse" for s in made.steps_taken if (s.chunk, s.step - 1) in broken)
    last = [step.action for step in made.steps_taken if step.chunk == 4]
    assert "reuse" in last and all(row.count("reused") == last.count("reuse") for row in made.kinds[3:])


def test_a_polynomial_that_overflows_never_reuses() -> None:
    policy = Chunkwise(threshold=1e6, warmup_steps=1, distance=TimeDistance((-1.7e308, -1.7e308, 0.0)))
    _, made = run(DummyDenoiser(), PLAN_ROWS["blockwise"](), policy=policy)
    negative = [step for step in made.steps_taken if step.distance == -math.inf]
    assert negative and all(step.action == "compute" for step in negative)


# -- what a run begins with -------------------------------------------------------------------------------------------


def test_noise_and_prefix_that_are_not_finite_are_named_up_front() -> None:
    plan = blockwise(9, 3, 4, prefix_frames=3)
    settings, good, prefix = (
        EngineSettings(plan, shifted(4, 3.0)),
        torch.zeros(1, 2, 9, 2, 2),
        torch.ones(1, 2, 3, 2, 2),
    )
    bad = good.clone()
    bad[0, 1, 4, 0, 0], bad[0, 1, 5, 0, 0] = math.nan, math.inf
    with pytest.raises(SettingError, match="noise: got '1 NaN and 1 infinite of 72 values', accepted: finite numbers"):
        generate(DummyDenoiser(), settings, bad, prefix=prefix)
    with pytest.raises(SettingError, match="prefix: got '24 infinite of 24 values'"):
        generate(DummyDenoiser(), settings, good, prefix=prefix * math.inf)


def tiny() -> WanTransformer:
    torch.manual_seed(0)
    model = WanTransformer(WanConfig(dim=24, ffn_dim=48, num_layers=2, num_heads=2, text_dim=16, freq_dim=16)).eval()
    torch.nn.init.normal_(model.head.head.weight, std=0.3)
    return model.requires_grad_(False)


def test_prompts_that_are_not_finite_are_named_up_front() -> None:
    good, bad = torch.zeros(1, 4, 16), torch.full((1, 4, 16), math.nan)
    with pytest.raises(SettingError, match="prompt of chunk 3, branch 1: got '64 NaN of 64 values'"):
        WanDenoiser(tiny(), {0: (good, good), 3: (good, bad)}, 3.0)
    WanDenoiser(tiny(), {0: (good, bad)}, 1.0)  # a branch that is not run is not looked at
    with pytest.raises(SettingError, match="caption of chunk 2"):
        MagiDenoiser(None, {0: (good, good[..., 0]), 2: (bad, good[..., 0])})  # type: ignore[arg-type]


def test_values_that_cannot_be_looked_at_pass() -> None:
    require_finite_values("noise", torch.zeros(2, device="meta"))
    require_finite_values("tokens", torch.zeros(2, dtype=torch.int64))


# -- K/V --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_values_beyond_fp8_are_the_largest_it_has(size: float) -> None:
    model = tiny()
    for name, parameter in model.named_parameters():
        if name.endswith("self_attn.v.weight"):
            parameter.mul_(size)
    denoiser = WanDenoiser(model, {0: [torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(1))]})
    plan, recorder = blockwise(9, 3, 3), Recorder()
    settings = EngineSettings(plan, shifted(3, 3.0), kv=KVSettings(dtype=torch.float8_e4m3fn))
    out = generate(denoiser, settings, torch.randn(1, 16, 9, 4, 4), observe=recorder)
    assert recorder.record().not_finite == () and out.isfinite().all()


def test_kv_that_is_nan_shows_at_the_step_that_reads_it() -> None:
    model = tiny()

    class Broken(WanDenoiser):
        def encode(self, item, cache) -> None:
            super().encode(item, cache)
            if item.chunk.index == 0:  # the clean pass, which has no velocity to look at
                k = torch.full((1, 2, 12, 12), math.nan)
                cache.write(1, range(1), item.chunk, k, k)

    denoiser = Broken(model, {0: [torch.randn(1, 4, 16, generator=torch.Generator().manual_seed(1))]})
    recorder = Recorder()
    settings = EngineSettings(blockwise(9, 3, 3), shifted(3, 3.0), clean_pass=True)
    generate(denoiser, settings, torch.randn(1, 16, 9, 4, 4), observe=recorder)
    assert places(recorder.record()) == [(chunk, step) for chunk in (1, 2) for step in range(3)]


# -- text, JSON, picture, terminal ------------------------------------------------------------------------------------


@pytest.fixture
def broken() -> RunRecord:
    policy = Chunkwise(threshold=0.3, warmup_steps=3)
    return run(Spoiled(spoil=at(1, 2)), PLAN_ROWS["blockwise"](), policy=policy)[1]


def test_text_says_it_behind_the_headline_and_in_the_map(broken: RunRecord) -> None:
    lines = text.summary(broken).splitlines()
    assert lines[1].startswith(
        "values were not finite from chunk 1, step 2 on (in the velocity): NaN or infinite, in 6 "
    )
    assert next(line for line in lines if line.startswith("chunk 1")).endswith("xxxxxx|")
    assert "x not finite (NaN or infinite)" in text.summary(broken) and text.summary(broken).isascii()
    good = run(DummyDenoiser(), PLAN_ROWS["blockwise"]())[1]
    row = next(line for line in text.table({"a": good, "b": broken}).splitlines() if line.startswith("finite values"))
    assert row.split() == ["finite", "values", "yes", "no"]
    assert "finite values" not in text.table({"a": good})


def test_json_lists_the_steps_and_stays_valid(broken: RunRecord, tmp_path: Path) -> None:
    document.write_document(tmp_path / "report.json", document.document({"a": broken}))
    read = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)["runs"]["a"]
    assert read["fault"] == broken.fault and len(read["not_finite"]) == 6
    assert read["not_finite"][0] == {
        "tick": 10, "chunk": 1, "step": 2, "part": "velocity", "branches": [], "videos": [],
    }  # fmt: skip
    assert any(step["distance"] is None for step in read["steps_taken"] if step["chunk"] == 1)  # NaN is no number


def test_the_picture_is_drawn_and_marks_the_steps(broken: RunRecord, tmp_path: Path) -> None:
    assert any(s.distance is not None and math.isnan(s.distance) for s in broken.steps_taken)
    codes = figure.map_codes(broken)
    assert int((codes == figure.KINDS.index("not finite")).sum()) == 6
    image = painted(figure.draw(broken))
    red = [int(figure.COLOURS["not finite"][i : i + 2], 16) for i in (1, 3, 5)]
    assert int((image == red).all(-1).sum()) > 1000
    figure.save(broken, tmp_path / "map.png")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_picture_whose_distances_are_all_no_numbers_is_drawn(broken: RunRecord, value: float) -> None:
    steps = [replace(step, distance=value, accumulated=value) for step in broken.steps_taken]
    made = replace(broken, steps_taken=tuple(steps))
    assert len(figure.draw(made).axes) == 2  # map and K/V
    painted(figure.draw(made))
    assert "nan" not in text.summary(made) and "inf " not in text.summary(made)


def test_the_terminal_says_it_in_the_last_line(capsys) -> None:
    import sys

    progress = Progress("run", sys.stdout)
    started = RunStarted("blockwise", 1, 0, 2, 2, 0, 0, None, ())
    step = StepTaken(0, 0, 0, 1.0, "compute", "", None, None, 1, 1, 1, 1, 0.0)
    events: list[Event] = [
        started,
        step,
        NotFinite(0, 0, 0, "velocity", (), ()),
        step,
        NotFinite(1, 0, 1, "latents", (), ()),
    ]
    for event in (*events, RunFinished(1.0, 0.0)):
        progress(event)
    assert capsys.readouterr().out.endswith("2/2 steps, 0 reused, not finite from chunk 0, step 0 on, 1.0 s\n")
    for event in (started, step, step, RunFinished(1.0, 0.0)):
        progress(event)
    assert "finite" not in capsys.readouterr().out  # the next run starts afresh


def test_pixels_that_are_not_finite_are_black_or_the_end_they_lie_beyond() -> None:
    values = torch.tensor([math.nan, -math.inf, math.inf, -1.0, 0.0, 1.0, 0.5])
    assert pixels(values).tolist() == [0, 0, 255, 0, 128, 255, 191]
    assert pixels(values.half()).tolist() == [0, 0, 255, 0, 128, 255, 191]


# -- commands ---------------------------------------------------------------------------------------------------------


def test_an_observer_can_end_a_run_at_the_first_such_step() -> None:
    seen: list[Event] = []
    plan, schedule = PLAN_ROWS["blockwise"](), shifted(STEPS, 3.0)
    with pytest.raises(NotFiniteError, match="from chunk 1, step 2 on"):
        generate(Spoiled(spoil=at(1, 2)), EngineSettings(plan, schedule), torch.zeros(1, 2, 15, 2, 2),
                 observe=refusing(seen.append))  # fmt: skip
    assert sum(isinstance(event, StepTaken) for event in seen) == STEPS + 3
    assert record(seen).seconds is None


@pytest.fixture
def nan_at_step_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mini models answer NaN from their second step on."""
    for kind in (WanDenoiser, MagiDenoiser):
        compute = kind.compute

        def spoiled(self, item, cache, *, keep_residual=False, compute=compute):
            output = compute(self, item, cache, keep_residual=keep_residual)
            return replace(output, velocity=output.velocity * math.nan) if item.step == 1 else output

        monkeypatch.setattr(kind, "compute", spoiled)


@pytest.mark.parametrize(
    "arguments",
    [("evaluate-mini", "--samples", "1", "--steps", "3"), ("evaluate-mini-magi", "--samples", "1", "--steps", "8"),
     ("calibrate", "--model", "mini", "--steps", "6", "--pairs", "2", "--target", "0.5")],
    ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_commands_end_with_one_sentence(nan_at_step_1, arguments, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert command_line.main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"{arguments[0]}: values are not finite from chunk 0, step 1 on") and err.count("\n") == 1
    assert not list(tmp_path.rglob("*.json"))


def test_benchmarks_end_with_one_sentence_and_save_nothing(nan_at_step_1, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("benchmarks.results.FOLDER", tmp_path)
    monkeypatch.setattr("benchmarks.compression.HELD_OUT", (("a red circle moving right", 0),))
    assert bench.main(["compression"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("bench: values are not finite from chunk 0, step 1 on") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_bench_that_cannot_save_is_refused_first(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "results").write_text("")
    monkeypatch.setattr("benchmarks.results.FOLDER", tmp_path / "results")
    assert bench.main(["compression"]) == 2
    out = capsys.readouterr()
    assert out.out == "" and out.err.startswith("bench: results: got ") and out.err.count("\n") == 1
