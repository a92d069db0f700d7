"""Which K/V branch stands in for one that was not evaluated."""

from __future__ import annotations

import pytest
from hostkit import module

branches = module("nodes.adapters.wan.branches")


@pytest.mark.parametrize(
    ("branch", "among", "expected"), [(1, {0, 2}, 2), (2, {0, 1}, 1), (0, {1, 2}, 1), (1, {0}, 0), (2, {1}, 1)]
)
def test_a_branch_borrows_from_its_own_conditioning_first(branch, among, expected):
    """Two positive entries have branches 1 and 2, the negative one has 0."""
    conds = {"positive": [{"uuid": "a"}, {"uuid": "b"}], "negative": [{"uuid": "c"}]}
    made = branches.Branches(conds, frozenset(conds), (1.0, 0.0), None)
    assert dict(made.places) == {"positive": range(1, 3), "negative": range(0, 1)}
    assert made.nearest(branch, among) == expected
    assert made.table(conds, 1.0) == {"a": 2, "b": 1, "c": 0}  # as the host stacks them: the last entry first
