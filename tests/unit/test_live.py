"""A run while it lasts: the growing map agrees with the record, and the time left knows which steps are to come."""

from __future__ import annotations

import json
from itertools import count

import pytest
import torch
from dummy import DummyDenoiser

from flowcache_core.engine import EngineSettings, generate
from flowcache_core.kv.settings import KVSettings
from flowcache_core.kv.storage import STORAGES
from flowcache_core.plan import blockwise, staggered
from flowcache_core.plan.base import Plan
from flowcache_core.report.events import ChunkFinished, Event, RunFinished, RunStarted, StepTaken
from flowcache_core.report.live import LiveRun
from flowcache_core.report.record import Recorder
from flowcache_core.report.remaining import Remaining
from flowcache_core.report.text import CHARACTERS
from flowcache_core.reuse.chunkwise import Chunkwise
from flowcache_core.reuse.foretold import foretold
from flowcache_core.reuse.interval import Interval
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.schedule import shifted

STEPS, CHUNKS = 10, 4
TABLE = StaticSchedule(computed=(0, 4, 9), first=(0, 1, 2, 3, 5, 9), together=True)
PLANS = {
    "blockwise": blockwise(2 * CHUNKS, 2, STEPS),
    "staggered": staggered(2 * CHUNKS, 2, STEPS, 3),
    "with a prefix": blockwise(2 * CHUNKS, 2, STEPS, prefix_frames=2),
}


def noise(plan: Plan) -> torch.Tensor:
    return torch.randn(1, 4, plan.frames, 4, 4, generator=torch.Generator().manual_seed(0))


def run(settings: EngineSettings, *observers) -> list[Event]:
    events: list[Event] = []
    plan = settings.plan
    start = noise(plan)
    prefix = start[:, :, : plan.prefix_frames] if plan.prefix_frames else None

    def see(event: Event) -> None:
        for observer in (events.append, *observers):
            observer(event)

    generate(DummyDenoiser(), settings, start, prefix=prefix, observe=see)
    return events


@pytest.mark.parametrize("attention", ["block-causal", "bidirectional"])
@pytest.mark.parametrize("policy", [TABLE, Interval(warmup_steps=2, interval=3), StaticSchedule(last_tick=True)])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_what_is_foretold_comes_true(plan, policy, attention):
    settings = EngineSettings(plan, shifted(STEPS, 3.0), policy=policy, attention=attention)
    taken = [event.action == "compute" for event in run(settings) if isinstance(event, StepTaken)]
    assert list(foretold(settings)) == taken and not all(taken)


def test_of_what_depends_on_the_video_only_forced_steps_are_foretold():
    settings = EngineSettings(PLANS["blockwise"], shifted(STEPS, 3.0), policy=Chunkwise(warmup_steps=2))
    assert list(foretold(settings)) == ([True] * 2 + [None] * 7 + [True]) * CHUNKS


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_map_at_the_end_is_the_record_s(plan):
    settings = EngineSettings(plan, shifted(STEPS, 3.0), policy=TABLE, kv=KVSettings(2.0))
    live, recorder = LiveRun([settings]), Recorder.of(settings)
    seen = []
    run(settings, recorder, live, lambda event: seen.append(live.snapshot()))
    record, last = recorder.record(), live.snapshot()
    assert last["rows"] == ["".join(CHARACTERS[kind] for kind in row) for row in record.kinds]
    assert (last["done"], last["computed"], last["reused"]) == (
        record.total_steps,
        record.computed_steps,
        record.reused_steps,
    )
    assert last["finished"] == last["chunks"] == CHUNKS - plan.prefix_chunks
    assert last["complete"] and last["now"] is None and last["left"] == 0
    assert last["kv"]["allocated"] == record.started.kv_tokens and last["kv"]["budget"] == record.started.budget_tokens
    spec = DummyDenoiser().kv_spec(noise(plan))
    assert last["kv"]["whole_bytes"] == plan.frames * spec.tokens_per_frame * spec.token_bytes
    assert (last["kv"]["bytes"] < last["kv"]["whole_bytes"]) == (plan.name == "blockwise")
    assert tuple(last["beside"]) == record.beside_reuse == (("kv budget",) if plan.name == "blockwise" else ())
    assert json.loads(json.dumps(seen[-1], allow_nan=False)) == json.loads(json.dumps(last))
    grown = [sum(row.count(" ") for row in one["rows"]) for one in seen]
    assert grown == sorted(grown, reverse=True) and grown[0] == plan.total_steps and grown[-1] == 0


def test_k_v_in_fewer_bits_is_told_by_both():
    """Nothing is dropped there, and no step is reused; it is another video all the same."""
    settings = EngineSettings(PLANS["blockwise"], shifted(STEPS, 3.0), kv=KVSettings(storage=STORAGES["int8"]()))
    live, recorder = LiveRun([settings]), Recorder.of(settings)
    run(settings, recorder, live)
    assert live.snapshot()["beside"] == ["kv format"] == list(recorder.record().beside_reuse)


def test_what_is_computed_now_is_the_next_step():
    settings = EngineSettings(PLANS["staggered"], shifted(STEPS, 3.0), policy=TABLE)
    live, nexts = LiveRun([settings]), []

    def see(event: Event) -> None:
        if isinstance(event, StepTaken):
            assert nexts[-1] == (event.chunk, event.step)
        live(event)
        nexts.append(live.now)

    run(settings, see)


def test_windows_count_on():
    settings = EngineSettings(PLANS["with a prefix"], shifted(STEPS, 3.0), policy=TABLE)
    first = EngineSettings(PLANS["blockwise"], shifted(STEPS, 3.0), policy=TABLE)
    live, recorder = LiveRun([first, settings]), Recorder.of(first)
    run(first, live, recorder)
    middle = live.snapshot()
    assert not middle["complete"] and middle["windows"] == [CHUNKS] and middle["now"] == (CHUNKS + 1, 0)
    run(settings, live, recorder)
    last = live.snapshot()
    assert last["complete"] and last["done"] == last["total"] == (2 * CHUNKS - 1) * STEPS
    assert last["rows"] == ["".join(CHARACTERS[kind] for kind in row) for row in recorder.record().kinds]


def test_a_step_in_part_has_its_share():
    """An event of token-level reuse says how much of its chunk was computed."""
    plan = blockwise(2, 2, 2)
    live = LiveRun([EngineSettings(plan, shifted(2, 1.0))])
    live(RunStarted("blockwise", 1, 0, 2, 2, 0, 0, None, ()))
    live(StepTaken(0, 0, 0, 1.0, "part", "motion", None, None, 1, 8, 0, 0, 0.1, computed_tokens=2))
    last = live.snapshot()
    assert last["shares"] == [[0, 0, 0.25]] and last["computed"] == 0.25 and last["reused"] == 0


class TestTimeLeft:
    """A clock that a computed step moves by 10 s, a reused one by 1 s and the end of a chunk by 5 s."""

    SECONDS = {True: 10.0, False: 1.0}

    def through(self, settings: EngineSettings) -> list[tuple[float, float | None]]:
        """(true seconds left, told) after every step."""
        time, told, ends = [0.0], [], []
        live = LiveRun([settings], clock=lambda: time[0])

        def see(event: Event) -> None:
            if isinstance(event, StepTaken):
                time[0] += self.SECONDS[event.action == "compute"]
            if isinstance(event, ChunkFinished):
                time[0] += 5.0
            live(event)
            if isinstance(event, StepTaken | ChunkFinished):
                told.append(live.snapshot()["left"])
                ends.append(time[0])

        run(settings, see)
        return [(time[0] - at, left) for at, left in zip(ends, told, strict=True)]

    @pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
    def test_a_fixed_list_is_foretold_to_the_second(self, plan):
        pairs = self.through(EngineSettings(plan, shifted(STEPS, 3.0), policy=TABLE))
        chunk_done = next(i for i in range(len(pairs)) if i >= STEPS)  # from then on all three kinds have been seen
        for true, told in pairs[chunk_done + 1 :] if plan.name == "blockwise" else pairs[-8:]:
            assert told == pytest.approx(true)

    def test_from_the_first_dense_chunk_on_the_others_are_not_taken_for_dense(self):
        """At the end of a dense first chunk its own pace would say three times too much."""
        pairs = self.through(EngineSettings(PLANS["blockwise"], shifted(STEPS, 3.0), policy=TABLE))
        true, told = pairs[STEPS - 1]
        naive = (10 * 6 + 4) / STEPS * (STEPS * (CHUNKS - 1))
        assert abs(told - true) <= 5 * CHUNKS and naive > 1.4 * true

    def test_other_chunks_tell_what_a_policy_will_do(self):
        expected = [(step, None) for _ in range(3) for step in range(4)]
        left = Remaining(expected, 3)
        for step in range(4):
            left.took(step, 1.0, 2.0, begins=True)
        assert left.steps == 8  # only the first chunk is known
        for step, share in enumerate((1.0, 0.0, 0.0, 1.0)):
            left.took(step, share, 2.0 if share else 0.0, begins=False)
        assert left.steps == 2 and left.seconds == pytest.approx(4.0)
        assert left.saved(2.0) == pytest.approx(4.0)

    def test_nothing_is_said_before_a_step_was_computed(self):
        left = Remaining([(0, True), (1, True)], 1)
        assert left.seconds is None and left.saved(1.0) == 0.0
        left.took(0, 1.0, 3.0, begins=True)
        assert left.seconds == pytest.approx(3.0)

    def test_a_slow_first_step_counts_once(self):
        left = Remaining([(step, True) for step in range(20)], 1)
        for step, seconds in zip(range(5), (60.0, 2.0, 2.0, 2.0, 2.0), strict=True):
            left.took(step, 1.0, seconds, begins=True)
        assert left.seconds == pytest.approx(30.0)


def test_a_run_that_broke_off_is_not_complete():
    settings = EngineSettings(PLANS["blockwise"], shifted(STEPS, 3.0), policy=TABLE)
    live, steps = LiveRun([settings]), count()

    def see(event: Event) -> None:
        live(event)
        if isinstance(event, StepTaken) and next(steps) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, see)
    assert not live.complete and live.snapshot()["done"] == 6
    live(RunFinished(1.0, 0.1))
    assert live.complete
