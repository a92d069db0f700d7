"""Measured errors of heads: what is missing, what a file gives back, what table comes out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowcache_core.errors import SettingError
from flowcache_core.sparse import XAttention
from flowcache_core.sparse.head_budget import share_out, shared
from flowcache_core.sparse.head_errors import Cell, HeadErrors, Sample, Subject

SUBJECT = Subject(model="0a" * 32, layers=2, heads=3, block=16, stride=4, candidates=(0.2, 0.6, 1.0))
SAMPLE, OTHER = Sample(seed=1, chunk=4, step=7, context_tokens=240), Sample(seed=2, chunk=7, step=3, context_tokens=384)


def measured(*samples: Sample, scale: float = 1.0) -> HeadErrors:
    """Complete samples: a head's error falls with p and rises with its place, its density does not."""
    errors = HeadErrors(SUBJECT)
    for number, sample in enumerate(samples):
        for cell in list(errors.missing(sample)):
            place = 1 + cell.layer * SUBJECT.heads + cell.head
            errors.record(sample, cell, scale * place * (1, 0.1)[cell.candidate] + number, (0.1, 0.5)[cell.candidate])
    return errors


def test_a_dense_candidate_needs_no_measurement() -> None:
    errors = HeadErrors(SUBJECT)
    cells = list(errors.missing(SAMPLE))
    assert len(cells) == 2 * 3 * 2 and cells[0] == Cell(0, 0, 0) and all(cell.candidate < 2 for cell in cells)
    assert errors.error[SAMPLE][..., 2].tolist() == [[0.0] * 3] * 2
    assert errors.density[SAMPLE][..., 2].tolist() == [[1.0] * 3] * 2


def test_a_file_resumes_where_the_run_ended(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "errors.json"
    errors = HeadErrors.resume(path, SUBJECT)
    cells = list(errors.missing(SAMPLE))
    for cell in cells[:5]:
        errors.record(SAMPLE, cell, 0.1 + cell.head, 0.25)
    errors.save(path)
    resumed = HeadErrors.resume(path, SUBJECT)
    assert list(resumed.missing(SAMPLE)) == cells[5:]
    assert np.array_equal(resumed.error[SAMPLE], errors.error[SAMPLE], equal_nan=True)
    assert np.array_equal(resumed.density[SAMPLE], errors.density[SAMPLE], equal_nan=True)
    assert "NaN" not in path.read_text() and not list(path.parent.glob("*.part"))


def test_means_are_over_complete_samples() -> None:
    errors = measured(SAMPLE, OTHER)
    begun = Sample(seed=9, chunk=4, step=7, context_tokens=240)
    errors.record(begun, Cell(0, 0, 0), 1e9, 1.0)
    error, density = errors.means()
    assert error.shape == (6, 3) and error[4].tolist() == pytest.approx([5.5, 1.0, 0.0])  # of 5, .5 and 6, 1.5
    assert density[4].tolist() == pytest.approx([0.1, 0.5, 1.0])
    with pytest.raises(SettingError, match="1 begun, none complete"):
        HeadErrors(SUBJECT, {begun: errors.error[begun]}, {begun: errors.density[begun]}).means()


def test_the_table_goes_into_the_method_and_is_no_worse_than_one_p() -> None:
    errors = measured(SAMPLE)
    one = shared(errors, 1)
    assert one.p == ((0.6,) * 3,) * 2 and one.density == pytest.approx(0.5)
    table = share_out(errors, one.density)
    assert table.error <= one.error and table.density <= 0.5 + 1e-9
    XAttention(block=16, stride=4, p=table.p).check_model(2, 3)
    roomier = share_out(errors, 0.6)
    assert roomier.p == ((0.6,) * 3, (0.6, 0.6, 1.0))  # the head that errs most gets what there is to give
    assert roomier.density == pytest.approx(3.5 / 6) and roomier.error == pytest.approx(1.5)
    assert share_out(errors, 1.0).p == ((1.0,) * 3,) * 2
    with pytest.raises(SettingError, match="at least 0.1"):
        share_out(errors, 0.05)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": "0b" * 32}, "errors.json: model"),
        ({"layers": 3}, "errors.json: layers"),
        ({"stride": 8}, "errors.json: stride"),
        ({"candidates": (0.2, 0.7, 1.0)}, "errors.json: candidates"),
    ],
)
def test_figures_of_another_subject_are_refused(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    path = tmp_path / "errors.json"
    measured(SAMPLE).save(path)
    with pytest.raises(SettingError, match="as in this run") as caught:
        HeadErrors.resume(path, replace(SUBJECT, **changes))
    assert caught.value.field == field


@pytest.mark.parametrize("given", [{}, {"steps": 4}, {"steps": 50, "guidance": 3.0}])
def test_samples_of_other_sampling_are_refused(tmp_path: Path, given: dict[str, Any]) -> None:
    path = tmp_path / "errors.json"
    errors = measured(SAMPLE)
    errors.made_with = {"steps": 50}
    errors.save(path)
    assert HeadErrors.resume(path, SUBJECT, {"steps": 50}).complete == (SAMPLE,)
    with pytest.raises(SettingError, match=r"errors.json: (steps|guidance)"):
        HeadErrors.resume(path, SUBJECT, given)


def _change(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda document: document["samples"][0].__setitem__(key, value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document.clear(),
        lambda document: document.pop("samples"),
        lambda document: document.__setitem__("schema", 2),
        lambda document: document["subject"].pop("model"),
        lambda document: document["subject"].__setitem__("more", 1),
        lambda document: document["subject"].__setitem__("candidates", "no list"),
        lambda document: document["samples"].append({}),
        lambda document: document["samples"].append(5),
        _change("error", [[1.0]]),
        _change("error", [[[1.0, "x", 0.0]] * 3] * 2),
        _change("error", [[[-1.0, 1.0, 0.0]] * 3] * 2),
        _change("error", [[[math.inf, 1.0, 0.0]] * 3] * 2),
        _change("density", [[[2.0, 1.0, 1.0]] * 3] * 2),
        _change("density", [[[None, 0.5, 1.0]] * 3] * 2),  # an error without its density
        _change("seed", -1),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, spoil: Callable[[Any], Any]) -> None:
    path = tmp_path / "errors.json"
    measured(SAMPLE).save(path)
    document = json.loads(path.read_text())
    spoil(document)
    path.write_text(json.dumps(document))
    with pytest.raises(SettingError):
        HeadErrors.load(path)


@pytest.mark.parametrize("content", ["", "[]", "{", "null", "\x00\xff"])
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "errors.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(SettingError, match="as this version writes them"):
        HeadErrors.load(path)
    with pytest.raises(SettingError):
        HeadErrors.load(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: replace(SUBJECT, model="mini"), "model"),
        (lambda: replace(SUBJECT, heads=0), "heads"),
        (lambda: replace(SUBJECT, stride=5), "stride"),
        (lambda: replace(SUBJECT, candidates=()), "candidates"),
        (lambda: replace(SUBJECT, candidates=(0.5, 0.5)), "candidates"),
        (lambda: replace(SUBJECT, candidates=(0.5, 1.5)), "candidates"),
        (lambda: HeadErrors(SUBJECT).record(SAMPLE, Cell(0, 0, 0), math.nan, 0.5), "error"),
        (lambda: HeadErrors(SUBJECT).record(SAMPLE, Cell(0, 0, 0), 0.5, 1.5), "density"),
    ],
)
def test_wrong_values_name_their_field(make: Callable[[], object], field: str) -> None:
    with pytest.raises(SettingError) as caught:
        make()
    assert caught.value.field == field
