"""Everything the engine can do, on a real device: the CPU's latents, up to rounding. The cases are those that
``tests/device`` puts through a pretended one; here copies really are under way while the model goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA device here", allow_module_level=True)

sys.path.append(str(Path(__file__).parents[1] / "device"))

from test_laws import CASES, Case

DEVICE = "cuda"
ROUNDED, QUANTISED = 2e-3, 5e-2  # of the latents' norm; K/V in few bits may round to another neighbour
TRIES = 3  # where K/V lies on the host: a race need not be lost every time


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """32 bits are 32 bits."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def tolerance(case: Case) -> float:
    kv = case.settings.get("kv")
    return QUANTISED if kv is not None and (kv.dtype is not None or kv.storage.name != "plain") else ROUNDED


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_values_are_those_of_the_cpu(case: Case) -> None:
    here = case.run("cpu")
    for _ in range(TRIES if case.kept_on_host else 1):
        there = case.run(DEVICE)
        assert there.latents.isfinite().all()
        assert [(step.action, step.reason) for step in here.steps] == [(s.action, s.reason) for s in there.steps]
        assert (there.latents - here.latents).norm() <= tolerance(case) * here.latents.norm()


@pytest.mark.parametrize("case", [case for case in CASES if case.kept_on_host], ids=lambda case: case.name)
def test_where_it_is_kept_runs_do_not_differ(case: Case) -> None:
    """The same run twice: what was copied too late or too early would not be the same."""
    first = case.run(DEVICE).latents
    assert all(torch.equal(case.run(DEVICE).latents, first) for _ in range(TRIES - 1))
