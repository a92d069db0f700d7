"""A run on two ranks is the run on one: latents, decisions and memory, for everything a run can be made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rank_groups import started
from rank_models import cases, refusals

from flowcache_core.errors import SettingError
from flowcache_core.parallel.shape import MeshShape, Shareable, mesh_from_text

BRANCHES, HEADS = "2x1", "1x2"
CASES = cases()
BY_BRANCH, BY_HEAD = ([name for name, case in CASES.items() if mesh in case.shapes] for mesh in (BRANCHES, HEADS))

Found = dict[str, dict[str, dict[str, object]]]


def found(meshes: str, folder: Path, names: str = "") -> Found:
    """By mesh and case."""
    with started("equal", meshes, folder, names=names) as ranks:
        ranks.wait()
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pair")


@pytest.fixture(scope="module")
def pair(folder) -> Found:
    """All cases on the same two ranks, which share first the branches and then the heads."""
    return found(f"{BRANCHES},{HEADS}", folder)


@pytest.mark.parametrize("name", BY_BRANCH)
def test_branches_on_ranks_are_the_same_bits(pair, name):
    case = pair[BRANCHES][name]
    assert case["difference"] == 0.0, case
    assert case["same decisions"]
    assert case["sent"] > 0


@pytest.mark.parametrize("name", BY_HEAD)
def test_heads_on_ranks_are_equal(pair, name):
    case = pair[HEADS][name]
    assert case["difference"] <= 1e-5 * max(1.0, case["size"]), case
    assert case["same decisions"]
    assert case["sent"] > 0


def test_ranks_share_the_memory(pair):
    for by_name in pair.values():
        for name, case in by_name.items():
            own, whole = case["kv"]
            assert own * 2 == whole, name


def test_the_cases_are_what_they_are_called(pair):
    found = pair[BRANCHES]
    reusing = "wan window chunkwise", "wan staggered unipc list", "wan bidirectional list", "wan joint bounded"
    for name in (*reusing, "wan teacache", "wan easycache", "wan auto", "wan auto fast", "wan sparse masks"):
        assert found[name]["reused"] > 0, name
    for name in ("wan tokens", "magi tokens", "wan sparse tokens", "wan partial schedule"):
        assert found[name]["parts"] > 0, name
    for name in (name for name in found if "sparse" in name):
        assert found[name]["density"] < 0.95, name
    for name in ("wan sparse masks", "wan sparse masks by head"):
        assert found[name]["served"] > 0, name


@pytest.mark.parametrize("mesh", [BRANCHES, HEADS])
def test_what_ranks_do_not_run_is_refused_on_both(pair, folder, mesh):
    """Before the first step, and the ranks can go on with something else."""
    expected = refusals(mesh_from_text(mesh))
    for rank in range(2):
        said = json.loads((folder / f"refused{rank}.json").read_text())[mesh]
        assert set(said) == set(expected)
        for name, refusal in expected.items():
            assert refusal.said in said[name], (rank, name, said[name])


def test_four_ranks_share_both(tmp_path):
    names = "wan window chunkwise", "wan random", "wan sparse per head", "magi sparse per head", "magi fp8 storage"
    cases = found("2x2", tmp_path, ",".join(names))["2x2"]
    assert set(cases) == set(names)
    for name, case in cases.items():
        assert case["difference"] <= 1e-5 * max(1.0, case["size"]), (name, case)
        own, whole = case["kv"]
        assert own * 4 == whole, name


def test_every_forward_of_magi_has_a_rank(tmp_path):
    names = "magi", "magi chunkwise residual", "magi prefix", "magi importance-redundancy", "magi auto kv"
    cases = found("3x1", tmp_path, ",".join(names))["3x1"]
    assert set(cases) == set(names)
    for name, case in cases.items():
        assert case["difference"] == 0.0 and case["same decisions"], (name, case)


@pytest.mark.parametrize(
    "model, ranks, mesh",
    [
        (Shareable(2, 12, 12), 2, "2x1"),
        (Shareable(1, 12, 12), 4, "1x4"),
        (Shareable(2, 12, 12), 3, "1x3"),
        (Shareable(2, 40, 40), 16, "2x8"),
        (Shareable(3, 24, 8), 3, "3x1"),
        (Shareable(3, 24, 8), 8, "2x4"),
        (Shareable(2, 12, 12), 1, "1x1"),
    ],
)
def test_most_ranks_for_branches(model, ranks, mesh):
    assert str(model.fit(ranks)) == mesh


@pytest.mark.parametrize(
    "model, ranks, said",
    [
        (Shareable(1, 12, 12), 5, "1, 2, 3, 4, 6, 12"),
        (Shareable(1, 40, 40), 16, "1, 2, 4, 5, 8, 10, 20, 40"),
        (Shareable(1, 24, 8), 3, "24 and 8 heads"),
        (Shareable(2, 12, 12), 7, "2, 3, 4, 6, 8, 12, 24"),
    ],
)
def test_a_number_that_fits_nothing_is_refused_with_those_that_do(model, ranks, said):
    with pytest.raises(SettingError, match="ranks") as error:
        model.fit(ranks)
    assert said in str(error.value)


@pytest.mark.parametrize("text", ["2", "2x", "x2", "0x2", "2x-1", "axb", "2x2x2", "", "2x1000", "²x1"])
def test_a_mesh_that_is_none(text):
    with pytest.raises(SettingError):
        mesh_from_text(text)


def test_a_mesh_that_is_asked_for_has_to_fit():
    model = Shareable(2, 12, 12)
    assert model.fit(4, MeshShape(1, 4)) == MeshShape(1, 4)
    with pytest.raises(SettingError, match="mesh"):
        model.fit(4, MeshShape(4, 1))
    with pytest.raises(SettingError, match="mesh"):
        model.fit(4, MeshShape(2, 1))
