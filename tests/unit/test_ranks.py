"""A run on two ranks is the run on one: latents, decisions and memory, for everything a run can be made of."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from rank_models import cases

from flowcache_core.errors import SettingError
from flowcache_core.parallel.launch import Ranks
from flowcache_core.parallel.shape import MeshShape, Shareable, mesh_from_text

HERE = Path(__file__).parent
NAMES = list(cases())


def started(what: str, mesh: str, folder: Path, timeout: float = 120.0, names: str = "") -> Ranks:
    command = [sys.executable, str(HERE / "rank_worker.py"), what, mesh, str(folder), str(timeout)]
    path = f"{HERE.parents[1]}:{HERE}"
    count = mesh_from_text(mesh).size
    return Ranks(command, count, timeout, {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RANK_CASES": names})


def found(mesh: str, folder: Path, names: str = "") -> dict[str, dict[str, object]]:
    with started("equal", mesh, folder, names=names) as ranks:
        ranks.wait()
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def branches(tmp_path_factory):
    return found("2x1", tmp_path_factory.mktemp("branches"))


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return found("1x2", tmp_path_factory.mktemp("heads"))


@pytest.mark.parametrize("name", NAMES)
def test_branches_on_ranks_are_the_same_bits(branches, name):
    case = branches[name]
    assert case["difference"] == 0.0, case
    assert case["same decisions"]
    assert case["sent"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_heads_on_ranks_are_equal(heads, name):
    case = heads[name]
    assert case["difference"] <= 1e-5 * max(1.0, case["size"]), case
    assert case["same decisions"]
    assert case["sent"] > 0


def test_ranks_share_the_memory(branches, heads):
    for name, case in branches.items():
        own, whole = case["kv"]
        assert own * 2 == whole, name
    for name, case in heads.items():
        own, whole = case["kv"]
        assert own * 2 == whole, name


def test_policies_did_reuse(branches):
    assert branches["wan window chunkwise"]["reused"] > 0
    assert branches["wan staggered unipc list"]["reused"] > 0
    assert branches["wan tokens"]["parts"] > 0 and branches["magi tokens"]["parts"] > 0


def test_four_ranks_share_both(tmp_path):
    names = "wan window chunkwise", "wan random", "magi", "magi fp8 storage"
    cases = found("2x2", tmp_path, ",".join(names))
    assert set(cases) == set(names)
    for name, case in cases.items():
        assert case["difference"] <= 1e-5 * max(1.0, case["size"]), (name, case)
        own, whole = case["kv"]
        assert own * 4 == whole, name


def test_every_forward_of_magi_has_a_rank(tmp_path):
    names = "magi", "magi chunkwise residual", "magi prefix", "magi importance-redundancy", "magi sink-window"
    cases = found("3x1", tmp_path, ",".join(names))
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
