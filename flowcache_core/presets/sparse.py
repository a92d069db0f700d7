"""Calibrated sparse attention by model: rows of ``sparse`` in a preset file, ours or one that was calibrated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import SettingError, listed, require
from ..sparse.calibrated import Calibrated
from ..sparse.head_table import HeadTable
from . import model_file, models, read_presets

UNREAD = "0" * 64
"""What a calibration states of weights that lie in several files: any may be meant."""
FORM = '{"text": a sentence, "density": a number, "table": what calibrate-heads measured}'


@dataclass(frozen=True)
class SparsePreset:
    """One row. method: at the density that the row recommends. evidence: what was measured with it."""

    model: str
    name: str
    text: str
    method: Calibrated
    evidence: Mapping[str, Any]

    def at(self, density: float | None) -> Calibrated:
        """Another density, shared out anew over the heads; the row's own for None."""
        return self.method if density is None else replace(self.method, density=density)


def sparse_names() -> dict[str, tuple[str, str]]:
    """ "MODEL: NAME" -> (model, name) of every row that is shipped."""
    rows = ((model, name) for model in models() for name in model_file(model).get("sparse", {}))
    return {f"{model}: {name}": (model, name) for model, name in rows}


def load_sparse(model: str, name: str, sha256: str | None = None) -> SparsePreset:
    """``name``: a row of the model, or ``FILE.json`` that calibrate-heads wrote, ``FILE.json:NAME`` for one of several.

    sha256: of the weights that it is for, where they are known. SettingError naming the rows there are, or the model
    that was calibrated instead.
    """
    rows, where = model_file(model).get("sparse", {}), f"model {model}"
    require(isinstance(name, str), "sparse preset", name, f"{listed(rows, 40) or 'none'} ({where})")
    if file := re.fullmatch(r"(.*\.json)(?::([^/\\]+))?", name):
        rows, where = read_presets(Path(file[1])).get("sparse", {}), file[1]
        name = file[2] or next(iter(rows), "")
    if name not in rows:
        accepted = f"{listed(rows, 40) or 'no row'} ({where}); calibrate-heads makes one"
        raise SettingError("sparse preset", name, accepted)
    found = parse_sparse_row(model, name, rows[name])
    measured = found.method.table
    assert measured is not None
    if sha256 and measured.subject.model != UNREAD:
        accepted = f"one of this model: its weights are {sha256[:12]}..."
        given = f"{name}, calibrated on weights {measured.subject.model[:12]}..."
        require(measured.subject.model == sha256, "sparse preset", given, accepted)
    return found


def parse_sparse_row(model: str, name: str, row: object) -> SparsePreset:
    where = f"sparse.{name}"
    ok = isinstance(row, Mapping) and isinstance(row.get("text"), str) and isinstance(row.get("evidence", {}), Mapping)
    if not isinstance(row, Mapping) or not ok:
        raise SettingError(where, row, FORM)
    try:
        method = Calibrated(density=row.get("density", 0.5), table=HeadTable.from_row(row.get("table")))
    except SettingError as error:
        raise SettingError(f"{where}.{error.field}", error.value, error.accepted) from error
    return SparsePreset(model, name, row["text"], method, row.get("evidence", {}))


def sparse_row(text: str, method: Calibrated, evidence: Mapping[str, Any]) -> dict[str, Any]:
    """A row as the file states it."""
    assert method.table is not None
    return {"text": text, "density": method.density, "table": method.table.row(), "evidence": dict(evidence)}
