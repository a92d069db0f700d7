"""The budget shared out among heads: as good as trying everything."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowcache_core.errors import SettingError
from flowcache_core.sparse.assignment import Numbers, assign

CASES = json.loads((Path(__file__).parents[1] / "golden" / "sparse_attention" / "ebc.json").read_text())


def feasible(wanted: bool) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(case, budget) for case in CASES for budget in case["budgets"] if budget["feasible"] == wanted]


def named(value: dict[str, Any]) -> str:
    return value.get("name") or f"{value['s_min']:g}"


@pytest.mark.parametrize(("case", "budget"), feasible(True), ids=named)
def test_small_budgets_are_shared_out_as_by_brute_force(case: dict[str, Any], budget: dict[str, Any]) -> None:
    found = assign(case["error"], 1 - np.array(case["sparsity"]), 1 - budget["s_min"], case["weight"])
    assert found.error == pytest.approx(budget["objective"], abs=1e-12)
    assert list(found.choice) in budget["assignments"]
    assert 1 - found.density >= budget["s_min"] - 1e-9


@pytest.mark.parametrize(("case", "budget"), feasible(False), ids=named)
def test_budgets_that_no_choice_meets_are_refused(case: dict[str, Any], budget: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match="the least here") as caught:
        assign(case["error"], 1 - np.array(case["sparsity"]), 1 - budget["s_min"], case["weight"])
    assert caught.value.field == "budget"


@pytest.mark.parametrize("case", CASES, ids=named)
def test_never_worse_than_one_candidate_for_all(case: dict[str, Any]) -> None:
    for shared in case["shared"]:
        found = assign(case["error"], 1 - np.array(case["sparsity"]), 1 - shared["s_min"], case["weight"])
        assert found.error == pytest.approx(shared["error_calibrated"], abs=1e-12)
        assert found.error <= shared["error_shared"] + 1e-12


def heads(count: int, candidates: int, seed: int, convex: bool) -> tuple[Numbers, Numbers]:
    """Errors over many orders of magnitude and densities in thousandths; not convex: candidates that gain nothing."""
    rng = np.random.default_rng(seed)
    density = np.sort(rng.integers(20, 1001, (count, candidates)), axis=1) / 1000
    scale = np.exp(rng.normal(0, 2, (count, 1)))
    error = scale * (1 - density) ** 3 if convex else np.sort(rng.random((count, candidates)), axis=1)[:, ::-1] * scale
    return error * np.exp(rng.normal(0, 0.0 if convex else 0.5, error.shape)), density


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("weighted", [False, True])
def test_any_small_case_is_solved_exactly(seed: int, weighted: bool) -> None:
    error, density = heads(5, 4, seed, convex=seed % 2 == 0)
    weight = np.random.default_rng(seed).random(5) + 0.2 if weighted else np.ones(5)
    share = density * (weight / weight.sum())[:, None]
    every = list(itertools.product(range(4), repeat=5))
    totals = [(sum(error[h, k] for h, k in enumerate(c)), sum(share[h, k] for h, k in enumerate(c))) for c in every]
    for budget in (0.35, 0.5, 0.7, 1.0):
        fits = [total for total, used in totals if used <= budget]
        if fits:
            found = assign(error, density, budget, weight)
            assert found.error == pytest.approx(min(fits), rel=1e-9) and found.density <= budget + 1e-9


def over_thousandths(error: Numbers, density: Numbers, budget: float) -> float:
    """The optimum by a table over all thousandths: another algorithm, for densities that are such."""
    units = np.rint(density * 1000).astype(int)
    room = round(budget * 1000 * len(error))
    best = np.zeros(room + 1)
    for costs, errors in zip(units, error):
        following = np.full(room + 1, np.inf)
        for cost, loss in zip(costs, errors):
            following[cost:] = np.minimum(following[cost:], best[: room + 1 - cost] + loss)
        best = following
    return float(best[-1])


@pytest.mark.parametrize("budget", [0.25, 0.5])
@pytest.mark.parametrize("convex", [False, True])
@pytest.mark.parametrize("count", [48, 360])
def test_many_heads_are_solved_exactly_too(count: int, convex: bool, budget: float) -> None:
    error, density = heads(count, 6, count, convex)
    found = assign(error, density, budget)
    assert found.error == pytest.approx(over_thousandths(error, density, budget), rel=1e-9)
    assert found.density <= budget + 1e-9


def test_equal_heads_do_not_multiply_the_states() -> None:
    error, density = np.tile([9.0, 4.0, 1.0, 0.0], (300, 1)), np.tile([0.1, 0.3, 0.7, 1.0], (300, 1))
    assert assign(error, density, 0.5).error == pytest.approx(over_thousandths(error, density, 0.5))


def test_of_equal_errors_the_sparser_and_nothing_costs_nothing() -> None:
    assert assign([[1.0, 1.0, 1.0]], [[0.5, 0.2, 0.3]], 1.0).choice == (1,)
    assert assign([[0.0, 0.0], [0.0, 0.0]], [[0.4, 1.0], [1.0, 0.4]], 0.9).choice == (0, 1)


@pytest.mark.parametrize(
    ("error", "density", "weight", "field"),
    [
        ([[1.0, -0.1]], [[0.5, 0.6]], None, "error"),
        ([[1.0, float("nan")]], [[0.5, 0.6]], None, "error"),
        ([[]], [[]], None, "error"),
        ([[1.0, 0.1]], [[0.5, 1.2]], None, "density"),
        ([[1.0, 0.1]], [[0.5]], None, "density"),
        ([[1.0, 0.1]], [[0.5, 0.6]], [0.0], "weight"),
        ([[1.0, 0.1]], [[0.5, 0.6]], [1.0, 1.0], "weight"),
    ],
)
def test_wrong_tables_name_their_field(error: Any, density: Any, weight: Any, field: str) -> None:
    with pytest.raises(SettingError) as caught:
        assign(error, density, 0.9, weight)
    assert caught.value.field == field
