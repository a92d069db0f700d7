"""The preset auto: which lists a run gets, and what is said of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flowcache_core.architecture import architecture_of
from flowcache_core.bundled import load_bundled
from flowcache_core.errors import SettingError
from flowcache_core.mini import TRANSFORMER_FILE
from flowcache_core.mini_scenes import TRANSFORMER_FILE as SCENES_FILE
from flowcache_core.presets import Preset, load_preset, model_file, models
from flowcache_core.presets.auto import FEWEST_STEPS, Run, choose, nearest_title, shipped
from flowcache_core.reuse.never import Never
from flowcache_core.reuse.schedule import StaticSchedule
from flowcache_core.schedule import from_sigmas, magi, shifted

MINI = Run(50, shifted(50, 3.0), "wan, 128 wide, 6 layers", TRANSFORMER_FILE.name, 3.0, "euler", "blockwise")
LARGE = "wan, 5120 wide, 40 layers"


def own(name: str = "mine", steps: int = 30, shift: float = 5.0, **fields: object) -> Preset:
    row = load_preset("mini", "balanced")
    table = StaticSchedule(computed=(0, 10, 20, steps - 1), first=tuple(range(steps)), together=True)
    found = replace(row, model="tune.safetensors", name=name, policy=table, computed_steps=4, curve=(), guidance=None)
    return replace(found, requires={"steps": steps, "shift": shift}, architecture=LARGE, solver="", **fields)


def counts(policy: object) -> tuple[int, int]:
    assert isinstance(policy, StaticSchedule)
    return len(policy.first), len(policy.computed)


@pytest.mark.parametrize(("name", "file"), [("mini", TRANSFORMER_FILE), ("scenes", SCENES_FILE)])
def test_the_bundled_models_are_known_by_architecture_and_file(name, file):
    assert model_file(name)["architecture"] == architecture_of(load_bundled(name).transformer)
    assert model_file(name)["file"] == file.name


def test_the_slider_goes_from_the_fewest_to_the_most_computed_steps():
    shares = []
    for tenth in range(11):
        first, later = counts(choose(MINI, tenth / 10).policy)
        shares.append(first + 3 * later)
    assert shares == sorted(shares) and shares[0] < 0.5 * shares[-1]
    assert choose(MINI, 1.0).name == "auto (mini, 60%)"  # of the curve: no entry has this list
    assert 0.15 <= shares[0] / 200 and shares[-1] / 200 <= 0.65


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_slider_beyond_its_ends(value):
    with pytest.raises(SettingError, match="fidelity"):
        choose(MINI, value)


def test_lists_that_fit_keep_what_was_measured_of_them():
    found = choose(MINI, 0.0)
    assert found.source is not None and found.source.curve and found.notes == ()
    assert found.policy == load_preset("mini", "fast").policy and found.name == "auto (mini: fast)"


@pytest.mark.parametrize(
    "other",
    [
        replace(MINI, model=SCENES_FILE.name, guidance=2.0),
        replace(MINI, steps=20, schedule=shifted(20, 3.0)),
    ],
    ids=["another file", "other steps"],
)
def test_every_run_has_lists_made_for_it(other):
    found = choose(other, 0.5)
    assert found.notes == () and found.source is not None and found.source.requires["steps"] == other.steps
    assert found.name != choose(MINI, 0.5).name


@pytest.mark.parametrize(("guidance", "said"), [(2.0, False), (5.9, False), (7.0, True), (1.0, True), (0.0, True)])
def test_guidance_of_another_size_is_said(guidance, said):
    found = choose(replace(MINI, guidance=guidance), 0.5)
    assert found.policy == choose(MINI, 0.5).policy
    notes = (f"preset mini: balanced was made at guidance 3, and this run has {guidance:g}",) if said else ()
    assert found.notes == notes


STRANGERS = {
    "steps between": replace(MINI, steps=31, schedule=shifted(31, 3.0)),
    "another shift": replace(MINI, schedule=shifted(50, 7.0)),
    "no even levels": replace(MINI, schedule=from_sigmas([(1 - k / 24) ** 2 for k in range(25)]), steps=24),
    "a model nobody knows": Run(40, shifted(40, 5.0), "wan, 2048 wide, 20 layers", "new.safetensors"),
    "another MAGI": Run(32, magi(32), "magi, 96 wide, 6 layers", "tiny.safetensors"),
    "a thousand steps": replace(MINI, steps=1000, schedule=shifted(1000, 3.0)),
    "one chunk": replace(MINI, steps=31, schedule=shifted(31, 3.0), chunks=1),
    "only given frames": replace(MINI, chunks=0, begins=False),
    "nothing known": Run(9),
}


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("fidelity", [0.0, 0.5, 1.0])
def test_nothing_is_refused_and_the_lists_suit_the_steps(name, fidelity):
    run = STRANGERS[name]
    found = choose(run, fidelity)
    assert isinstance(found.policy, StaticSchedule)
    found.policy.check(run.steps)
    for table in (found.policy.computed, found.policy.first or found.policy.computed):
        assert table[0] == 0 and table[-1] == run.steps - 1 and len(table) < run.steps
    if name not in ("only given frames",):
        assert "its quality here is not measured" in found.notes[0]
        assert found.source is not None and found.source.curve == () and found.source.requires is None


def test_the_nearest_is_of_the_same_family_and_size():
    sizes = {
        LARGE: "skyreels-v2-14b",
        "wan, 1536 wide, 30 layers": "skyreels-v2-1.3b",
        "magi, 3072 wide, 34 layers": "magi-1-4.5b",
        "magi, 96 wide, 6 layers": "mini-magi",
    }
    for architecture, name in sizes.items():
        assert choose(Run(37, None, architecture), 0.5).name.startswith(f"auto ({name}")


@pytest.mark.parametrize("steps", range(1, FEWEST_STEPS))
def test_few_steps_reuse_nothing_and_say_what_helps(steps):
    found = choose(Run(steps, shifted(steps, 5.0), "wan, 1536 wide, 30 layers"), 0.5, [own(steps=30)])
    assert isinstance(found.policy, Never) and found.source is None
    assert f"nothing to reuse at {steps} steps" in found.notes[0] and "KV Cache Compressor" in found.notes[0]


class TestTheUsersOwn:
    run = Run(30, shifted(30, 5.0), LARGE, "tune.safetensors")

    def test_go_before_those_of_the_pack(self):
        found = choose(self.run, 0.5, [own()])
        assert found.name == "auto (my: mine)" and found.notes == ()
        assert "skyreels" in choose(self.run, 0.5).name

    def test_the_one_that_fits_goes_before_a_nearer_name(self):
        found = choose(self.run, 0.5, [own("a", 40), own("b", 30), own("c", 30, 9.0)])
        assert found.name == "auto (my: b)"

    def test_stretched_where_none_fits(self):
        found = choose(replace(self.run, steps=60, schedule=shifted(60, 5.0)), 0.5, [own()])
        assert found.name == "auto (my: mine)" and counts(found.policy) == (60, 8)
        assert "made for 30 steps at shift 5" in found.notes[0]

    def test_of_the_same_architecture_but_another_file_is_said(self):
        found = choose(replace(self.run, model="other.safetensors"), 0.5, [own()])
        assert found.name == "auto (my: mine)" and "on tune.safetensors, and this is other" in found.notes[0]
        assert found.source is not None and found.source.curve == (), "what was measured was of another file"

    def test_the_same_file_goes_before_another(self):
        others = [replace(own("a"), model="x"), own("b")]
        assert choose(self.run, 0.5, others).name == "auto (my: b)"

    def test_of_another_model_are_left_for_the_packs(self):
        assert "my:" not in choose(MINI, 0.5, [own(steps=50, shift=3.0)]).name

    def test_without_fixed_lists_are_none_to_take(self):
        loose = replace(own(), policy=Never())
        assert "my:" not in choose(self.run, 0.5, [loose]).name


def test_the_nearest_that_fits_is_named_as_the_node_lists_it():
    assert nearest_title(replace(MINI, steps=20, schedule=shifted(20, 3.0))) == "mini: slow-20"
    assert nearest_title(replace(MINI, steps=21, schedule=shifted(21, 3.0))) is None
    assert nearest_title(TestTheUsersOwn.run, [own()]) == "my: mine"


def test_every_fixed_list_of_the_pack_is_offered():
    rows = [(model, name) for model in models() for name in model_file(model)["presets"]]
    fixed = {f"{model}: {name}" for model, name in rows if load_preset(model, name).requires is not None}
    assert fixed == {offer.title for offer in shipped() if ": " in offer.title}
