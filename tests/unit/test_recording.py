"""Recordings: what they add up in every kind of run, what a sketch costs, and files that are bad, partial or mixed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from dummy import DummyDenoiser

from flowcache_core.calibrate.gram import Grams
from flowcache_core.calibrate.record import Record
from flowcache_core.calibrate.recording import Facts, Recording
from flowcache_core.calibrate.sketch import SIZE, Sketch, random_signs
from flowcache_core.denoiser import ChunkInput
from flowcache_core.engine import EngineSettings, generate
from flowcache_core.errors import SettingError
from flowcache_core.plan import blockwise, staggered, window
from flowcache_core.reuse.never import Never
from flowcache_core.schedule import shifted
from flowcache_core.solvers.unipc import UniPC

STEPS, CHUNKS = 8, 4
FACTS = Facts("mine", "abc", 3.0, 4.0, "euler", "blockwise", STEPS)


@dataclass
class Guided(DummyDenoiser):
    """Keeps every guided velocity as the engine's steps see it: (chunk, step) -> velocity of the last call."""

    branches: int = 2
    velocities: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)

    def guide(self, velocity, item):
        cond, uncond = velocity
        self.velocities[item.chunk.index, item.step] = uncond + 4 * (cond - uncond)
        return self.velocities[item.chunk.index, item.step]

    def compute(self, item, cache, *, keep_residual=False):
        output = super().compute(item, cache, keep_residual=keep_residual)
        return replace(output, velocity=output.velocity * torch.tensor([1.0, 0.7]).view(2, 1, 1, 1, 1, 1))

    def window(self, latents, timesteps, branches):
        velocity = super().window(latents, timesteps, branches) / 1000
        return velocity * torch.tensor([1.0, 0.7]).view(2, 1, 1, 1, 1, 1) + 0.1 * latents


def answering(item):
    return torch.sin(3 * item.latents + item.chunk.index) * (1 + item.sigma)


PLANS = {
    "blockwise": blockwise(2 * CHUNKS, 2, STEPS),
    "staggered": staggered(2 * CHUNKS, 2, STEPS, 3),
    "window": window(2 * CHUNKS, 2, STEPS, 4),
    "bidirectional": staggered(2 * CHUNKS, 2, STEPS, 3),
    "continued": blockwise(2 * CHUNKS, 2, STEPS, 2),
}


@pytest.mark.parametrize("kind", PLANS)
def test_the_recorded_table_is_that_of_the_stored_velocities(kind):
    """In every plan, with guidance, a batch, a solver with memory and a given prefix; and the run stays the same."""
    plan, attention = PLANS[kind], "bidirectional" if kind == "bidirectional" else "block-causal"
    noise = torch.randn(3, 4, 2 * CHUNKS, 4, 4, generator=torch.Generator().manual_seed(1))
    prefix = noise[:, :, : plan.prefix_frames] if plan.prefix_frames else None
    settings = EngineSettings(plan, shifted(STEPS, 3.0), UniPC(), attention=attention)
    plain = generate(Guided(answering), replace(settings, policy=Never()), noise, prefix=prefix)
    denoiser, record = Guided(answering), Record()
    assert torch.equal(generate(denoiser, replace(settings, policy=record), noise, prefix=prefix), plain)

    tables = {True: [], False: []}
    for chunk in range(plan.prefix_chunks, CHUNKS):
        rows = torch.stack([denoiser.velocities[chunk, step] for step in range(STEPS)], 1).flatten(2).double()
        tables[chunk == 0].extend(rows @ rows.mT / rows.shape[2])
    grams = record.grams
    assert (grams.first.count, grams.later.count) == (len(tables[True]), len(tables[False]))
    assert grams.begun == grams.whole == 3 * (CHUNKS - plan.prefix_chunks)
    assert grams.levels == settings.schedule.sigmas
    for kept, expected in ((grams.first, tables[True]), (grams.later, tables[False])):
        if expected:
            mean = torch.stack(expected).mean(0).numpy()
            np.testing.assert_allclose(kept.mean(), mean, rtol=0, atol=1e-5 * mean.max())


def test_a_recording_grows_run_by_run():
    noise, record = torch.randn(1, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0)), Record()
    settings = EngineSettings(blockwise(4, 2, STEPS), shifted(STEPS, 3.0), policy=record)
    generate(DummyDenoiser(answering), settings, noise)
    once = record.grams.later.mean().copy()
    generate(DummyDenoiser(answering), settings, noise)
    assert (record.grams.first.count, record.grams.later.count) == (2, 2)
    np.testing.assert_allclose(record.grams.later.mean(), once)
    for other in (shifted(STEPS, 5.0), shifted(STEPS - 1, 3.0)):
        changed = replace(settings, plan=blockwise(4, 2, other.steps), schedule=other)
        with pytest.raises(SettingError, match="recording: got .* accepted: the same steps and shift"):
            generate(DummyDenoiser(answering), changed, noise)
    assert record.grams.whole == 4


# -- the sketch --------------------------------------------------------------------------------------------------------


def test_up_to_its_size_a_sketch_is_exact():
    rows = torch.randn(2, SIZE)
    assert torch.equal(Sketch()(rows), rows)
    assert torch.equal(Sketch()(rows.half()), rows.half().float())


def test_signs_are_the_same_everywhere():
    assert random_signs(12).tolist() == SIGNS
    assert random_signs(1000)[:12].tolist() == SIGNS
    assert abs(random_signs(100_000).float().mean()) < 0.02


SIGNS = [1, 1, -1, 1, -1, 1, -1, -1, 1, -1, -1, 1]


@pytest.mark.parametrize("kind", ["noise", "smooth", "one place"])
def test_a_sketch_keeps_the_size_of_small_differences(kind):
    """SkyReels-V2 at 540P: 16 x 5 x 68 x 120 values. The stated 1.1 % is one standard deviation; here four at most."""
    draw = torch.Generator().manual_seed(3)
    shape = (2, 16, 5, 68, 120)
    base, change = torch.randn(shape, generator=draw)
    if kind == "smooth":
        change = torch.nn.functional.avg_pool3d(change[None], (3, 9, 9), 1, (1, 4, 4))[0]
    if kind == "one place":
        small = torch.zeros_like(change)
        small[:, 2, 20:40, 30:70] = change[:, 2, 20:40, 30:70]
        change = small
    nearly = base + 1e-4 * change
    sketch = Sketch()
    a, b = (sketch(one.flatten()[None]).double() for one in (base, nearly))
    assert a.shape == (1, SIZE) and a.dtype == torch.float64
    found, true = (a - b).square().sum(), (base.double() - nearly.double()).square().sum()
    assert abs(found / true - 1) < 4 * (2 / SIZE) ** 0.5 + 0.002  # fp32 sums of values 1e4 times the difference
    assert abs(a.square().sum() / base.double().square().sum() - 1) < 4 * (2 / SIZE) ** 0.5


def test_memory_beside_a_run_is_bounded_at_540p():
    """Five chunks in work at 50 steps: what the state holds, counted in a run; latents of the real size."""
    held = []

    plan = staggered(25, 5, 10, 2)
    schedule = shifted(10, 8.0)
    state = Record().begin(schedule, DummyDenoiser())
    latents = torch.zeros(1, 16, 5, 68, 120)
    for tick in plan.ticks[:9]:
        for step in tick.steps:
            level = (schedule.sigmas[step.step], schedule.timesteps[step.step])
            state.observe(ChunkInput(plan.chunks[step.chunk], step.step, *level, latents), latents[None])
            rows = {id(one): one.untyped_storage().nbytes() for kept in state.seen.values() for one in kept}
            held.append(sum(rows.values()))
    assert max(len(kept) for kept in state.seen.values()) == 9
    per_step = max(held) / sum(len(kept) for kept in state.seen.values())
    assert per_step == 4 * SIZE
    assert 5 * 50 * per_step < 20e6  # bytes at 50 steps, where the stored velocities in 16 bits would be 325 MB


# -- what is partial ---------------------------------------------------------------------------------------------------


def interrupted(fail_at: tuple[int, int]) -> Recording:
    recording = Recording(FACTS, CHUNKS)
    settings = EngineSettings(
        blockwise(2 * CHUNKS, 2, STEPS), shifted(STEPS, 3.0), policy=Record(grams=recording.grams)
    )
    noise = torch.randn(1, 1, 2 * CHUNKS, 2, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InterruptedError):
        generate(DummyDenoiser(answering, fail_at=fail_at), settings, noise)
    return recording


def test_an_interrupted_recording_is_used_as_far_as_whole_chunks_go(tmp_path):
    recording = interrupted((2, 5))
    assert (recording.grams.begun, recording.grams.first.count, recording.grams.later.count) == (3, 1, 1)
    assert recording.remarks() == ("1 of 3 chunks were not finished or not finite, and are left out",)
    recording.save(tmp_path / "a.json")
    assert Recording.load(tmp_path / "a.json").remarks() == recording.remarks()


def test_one_kind_of_chunk_stands_in_for_the_other_and_says_so():
    recording = interrupted((1, 2))
    first, later = recording.grams.tables()
    assert np.array_equal(first, later)
    assert "no chunk but the first was recorded" in recording.remarks()[1]
    recording.grams.first, recording.grams.later = recording.grams.later, recording.grams.first
    assert "only videos that continue" in recording.remarks()[1]


def test_nothing_recorded_is_refused(tmp_path):
    recording = interrupted((0, 3))
    for use in (lambda: recording.steps, lambda: recording.save(tmp_path / "a.json"), recording.grams.tables):
        with pytest.raises(SettingError, match="recording: got 'no whole chunk"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_chunks_that_are_not_finite_are_left_out():
    record = Record()

    def rule(item):
        velocity = torch.ones_like(item.latents)
        if item.chunk.index == 1:
            velocity[0] = torch.nan
        return velocity

    noise = torch.zeros(2, 1, 4, 2, 2)
    generate(DummyDenoiser(rule), EngineSettings(blockwise(4, 2, 4), shifted(4, 3.0), policy=record), noise)
    assert (record.grams.begun, record.grams.first.count, record.grams.later.count) == (4, 2, 1)
    np.testing.assert_allclose(record.grams.later.mean(), np.ones((4, 4)))


# -- files -------------------------------------------------------------------------------------------------------------


def made(facts: Facts = FACTS, shift: float = 3.0, seed: int = 0) -> Recording:
    recording = Recording(facts, 2, sources=(f"a prompt, seed {seed}",))
    settings = EngineSettings(blockwise(4, 2, STEPS), shifted(STEPS, shift), policy=Record(grams=recording.grams))
    generate(
        DummyDenoiser(answering), settings, torch.randn(1, 1, 4, 2, 2, generator=torch.Generator().manual_seed(seed))
    )
    return recording


def test_a_file_holds_all_of_it_and_is_small(tmp_path):
    recording, path = made(), tmp_path / "a.json"
    recording.save(path)
    found = Recording.load(path)
    assert (found.facts, found.chunks, found.sources) == (recording.facts, 2, ("a prompt, seed 0",))
    assert (found.grams.begun, found.grams.levels) == (2, recording.grams.levels)
    for kept, expected in zip(found.grams.tables(), recording.grams.tables(), strict=True):
        np.testing.assert_allclose(kept, expected, rtol=1e-11)
    fifty = Recording(FACTS, 2, Grams(shifted(50, 3.0).sigmas, 2))
    fifty.grams.add(torch.rand(1, 50, 50, dtype=torch.float64), first=True)
    fifty.grams.add(torch.rand(1, 50, 50, dtype=torch.float64), first=False)
    fifty.save(path)
    assert path.stat().st_size < 100_000


def test_recordings_add_up_whatever_their_order(tmp_path):
    one, two = made(seed=0), made(seed=1)
    one.merge(two)
    other = made(seed=1)
    other.merge(made(seed=0))
    np.testing.assert_allclose(one.grams.later.mean(), other.grams.later.mean(), rtol=1e-14)
    assert one.sources == ("a prompt, seed 0", "a prompt, seed 1") and one.grams.begun == 4


@pytest.mark.parametrize(
    "change",
    [{"model": "other"}, {"sha256": "abd"}, {"guidance": 5.0}, {"solver": "unipc"}, {"plan": "window"}, {"offset": 2}],
)
def test_recordings_of_other_runs_do_not_mix(change):
    one, before = made(), made().grams.later.mean()
    with pytest.raises(SettingError, match=f"recording.{next(iter(change))}: got"):
        one.merge(made(replace(FACTS, **change)))
    with pytest.raises(SettingError, match=r"recording\.sigmas"):
        one.merge(made(shift=5.0))
    np.testing.assert_array_equal(one.grams.later.mean(), before)


DAMAGE = {
    "no object": ("[1]", "a JSON object"),
    "a preset file": ('{"schema": 1, "presets": {}}', "a recording"),
    "not JSON": ("{", "unreadable"),
    "the future": ({"schema": 2}, r"schema: got 2, accepted: 1; update"),
    "no steps": ({"sigmas": [1.0]}, "sigmas"),
    "rising steps": ({"sigmas": [0.5] * (STEPS + 1)}, "sigmas"),
    "text for a level": ({"sigmas": ["1"] * (STEPS + 1)}, "sigmas"),
    "other steps": ({"sigmas": [1.0, 0.5, 0.0]}, r"first\.mean: got '8 rows', accepted: 2 rows"),
    "a short row": ({"first": {"chunks": 1, "mean": [[1.0]] * STEPS}}, r"first\.mean\[0\]"),
    "no table": ({"later": None}, "later"),
    "a count of text": ({"later": {"chunks": "1", "mean": []}}, r"later\.chunks"),
    "a negative square": (
        {"first": {"chunks": 1, "mean": [[-1.0] * (STEPS - i) for i in range(STEPS)]}},
        "negative square",
    ),
    "begun less than whole": ({"begun": 1}, "begun"),
    "guidance of text": ({"recording": {"guidance": "4"}}, "guidance"),
    "no offset": ({"recording": {"offset": None}}, "offset"),
    "no model": ({"recording": {"model": None}}, "model"),
    "sources of numbers": ({"sources": [1]}, "sources"),
    "no chunks": ({"chunks": 0}, "chunks"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_refused_by_name(tmp_path, kind):
    change, message = DAMAGE[kind]
    path = tmp_path / "a.json"
    if isinstance(change, str):
        path.write_text(change)
    else:
        document = made().document()
        for key, value in change.items():
            document[key] = {**document[key], **value} if key == "recording" else value
        path.write_text(json.dumps(document))
    with pytest.raises(SettingError, match=message) as caught:
        Recording.load(path)
    assert "a.json" in str(caught.value)


def test_nan_in_a_file_is_refused(tmp_path):
    text = json.dumps(made().document())
    number = made().document()["later"]["mean"][0][0]
    assert str(number) in text
    (tmp_path / "a.json").write_text(text.replace(str(number), "NaN"))
    with pytest.raises(SettingError, match="a.json: got .*NaN, which is not JSON"):
        Recording.load(tmp_path / "a.json")
