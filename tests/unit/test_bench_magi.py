"""What the mini MAGI's benchmark computes from its runs."""

from __future__ import annotations

import pytest

from benchmarks.magi_flops import REDUCED, count
from benchmarks.magi_reuse import OURS, margins


def test_margins_are_read_off_the_other_curve_where_it_reaches() -> None:
    ours = [(0.1, 20.0), (0.3, 26.0), (0.5, 30.0)]
    other = [(0.6, 32.0), (0.2, 20.0), (0.4, 26.0)]  # not in order
    rows = [{"method": OURS, "computed": share, "psnr": psnr} for share, psnr in ours]
    rows += [{"method": "other", "computed": share, "psnr": psnr} for share, psnr in other]
    rows += [{"method": "one point", "computed": 0.3, "psnr": 1.0}]
    assert margins(rows) == {"other": {"30.0%": 3.0, "50.0%": 1.0, "median": 2.0}}


@pytest.mark.parametrize("chunks", [1, 3])
def test_one_forward_costs_what_the_closed_form_says(chunks: int) -> None:
    found = count("reduced", REDUCED, "cpu", 16, 2, chunks)
    assert (found.tokens, found.context) == (128, 128 * chunks)
    assert 0 < found.difference < 0.015  # embedders, gates and head are left out
