"""What a calibration has measured: the error of each head at each candidate, in a file from which it resumes.

The first half of Error-guided Budgeted Calibration (HASTE, arXiv 2605.14513): on a dense run, one head at a time
attends sparsely at one candidate p, and the guided velocity is compared with the dense one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import SettingError, require, require_count, require_finite
from ..files import whole_file
from .antidiagonal import require_stride
from .xattention import require_p

SCHEMA = 1
CANDIDATES = (0.1, 0.2, 0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 0.96, 1.0)
"""From nearly nothing to everything: the paper's .85, .9 and .95 cannot reach most budgets."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Subject:
    """What is calibrated. Figures of one subject say nothing about another.

    model: SHA-256 of the weights. candidates: p of XAttention, ascending.
    """

    model: str
    layers: int
    heads: int
    block: int = 128
    stride: int = 16
    candidates: tuple[float, ...] = CANDIDATES

    def __post_init__(self) -> None:
        ok = isinstance(self.model, str) and len(self.model) == 64 and set(self.model) <= set("0123456789abcdef")
        require(ok, "model", self.model, "the SHA-256 of the weights, 64 hexadecimal digits")
        for name in ("layers", "heads", "block"):
            require_count(name, getattr(self, name), minimum=1)
        require_stride(self.block, self.stride)
        object.__setattr__(self, "candidates", tuple(self.candidates))
        for p in self.candidates:
            require_p("candidates", p)
        ascending = len(self.candidates) > 0 and all(a < b for a, b in zip(self.candidates, self.candidates[1:]))
        require(ascending, "candidates", self.candidates, "at least one p, ascending")

    @property
    def cells(self) -> int:
        """Measurements of one sample."""
        return self.layers * self.heads * sum(p < 1 for p in self.candidates)


@dataclass(frozen=True)
class Sample:
    """One step of one chunk of a recorded dense run."""

    seed: int
    chunk: int
    step: int
    context_tokens: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            require_count(name, value, minimum=0)


@dataclass(frozen=True)
class Cell:
    """A head at a candidate: ``candidate`` is the index of its p."""

    layer: int
    head: int
    candidate: int


@dataclass
class HeadErrors:
    """Measurements by sample: relative squared errors of the velocity and densities, NaN where not yet measured, as
    ``[layers, heads, candidates]``. A candidate of 1 is dense and needs no measurement. made_with: what else all
    samples have in common, in words and numbers; samples of other sampling do not belong into one mean.
    """

    subject: Subject
    error: dict[Sample, Array] = field(default_factory=dict)
    density: dict[Sample, Array] = field(default_factory=dict)
    made_with: Mapping[str, Any] = field(default_factory=dict)

    def record(self, sample: Sample, cell: Cell, error: float, density: float) -> None:
        """Add a measurement. error: |v - v_dense|^2 / |v_dense|^2; density: computed share of the head's pairs."""
        require_finite("error", error, minimum=0.0)
        require_finite("density", density, minimum=0.0, maximum=1.0)
        self._begin(sample)
        place = (cell.layer, cell.head, cell.candidate)
        self.error[sample][place], self.density[sample][place] = error, density

    def missing(self, sample: Sample) -> Iterator[Cell]:
        """The cells that ``sample`` still lacks, layer by layer."""
        self._begin(sample)
        for layer, head, candidate in np.argwhere(np.isnan(self.error[sample])).tolist():
            yield Cell(layer, head, candidate)

    def _begin(self, sample: Sample) -> None:
        if sample not in self.error:
            shape = (self.subject.layers, self.subject.heads, len(self.subject.candidates))
            dense = np.array(self.subject.candidates) == 1
            self.error[sample] = np.where(dense, np.zeros(shape), np.nan)
            self.density[sample] = np.where(dense, np.ones(shape), np.nan)

    @property
    def complete(self) -> tuple[Sample, ...]:
        """Samples that lack no measurement."""
        return tuple(sample for sample, error in self.error.items() if not np.isnan(error).any())

    def means(self) -> tuple[Array, Array]:
        """Errors and densities ``[layers * heads, candidates]``, means over the samples that are complete.

        SettingError when there is none.
        """
        whole = self.complete
        require(len(whole) > 0, "samples", f"{len(self.error)} begun, none complete", "at least one complete sample")
        tables = (np.mean([of[sample] for sample in whole], axis=0) for of in (self.error, self.density))
        error, density = (table.reshape(-1, len(self.subject.candidates)) for table in tables)
        return error, density

    # -- file ----------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write everything as JSON; a file that was there stays whole until the new one is."""
        samples = [
            {**asdict(sample), "error": _listed(error), "density": _listed(self.density[sample])}
            for sample, error in self.error.items()
        ]
        document = {
            "schema": SCHEMA,
            "subject": asdict(self.subject),
            "made_with": dict(self.made_with),
            "samples": samples,
        }
        with whole_file(path) as part:
            part.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> HeadErrors:
        """Read what :meth:`save` wrote. SettingError when the file is something else or damaged."""
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            require(document["schema"] == SCHEMA, f"{path.name}: schema", document["schema"], str(SCHEMA))
            subject = Subject(**{**document["subject"], "candidates": tuple(document["subject"]["candidates"])})
            loaded = cls(subject, made_with=dict(document.get("made_with", {})))
            for row in document["samples"]:
                loaded._add(row)
        except SettingError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            accepted = f"measured errors of heads as this version writes them ({type(error).__name__}: {error})"
            raise SettingError("calibration file", str(path), accepted) from error
        return loaded

    @classmethod
    def resume(cls, path: Path, subject: Subject, made_with: Mapping[str, Any] | None = None) -> HeadErrors:
        """What ``path`` holds, empty when there is no such file. SettingError when it is of another subject, or made
        with something else.
        """
        given = dict(made_with or {})
        if not path.exists():
            return cls(subject, made_with=given)
        loaded = cls.load(path)
        mine, theirs = asdict(subject) | given, asdict(loaded.subject) | dict(loaded.made_with)
        for name in dict.fromkeys((*mine, *theirs)):
            now, then = mine.get(name, "not stated"), theirs.get(name, "not stated")
            require(then == now, f"{path.name}: {name}", then, f"{now}, as in this run; another file for the other")
        return loaded

    def _add(self, row: Mapping[str, Any]) -> None:
        sample = Sample(**{name: row[name] for name in ("seed", "chunk", "step", "context_tokens")})
        shape = (self.subject.layers, self.subject.heads, len(self.subject.candidates))
        error, density = (np.array(row[name], dtype=np.float64) for name in ("error", "density"))
        ok = error.shape == density.shape == shape and bool((np.isnan(error) == np.isnan(density)).all())
        for table, most in ((error, np.finfo(np.float64).max), (density, 1.0)):
            ok = ok and bool(((table >= 0) & (table <= most) | np.isnan(table)).all())
        require(ok, "samples", f"error {error.shape}, density {density.shape}", f"{shape}, numbers in their ranges")
        self.error[sample], self.density[sample] = error, density


def _listed(table: Array) -> list[Any]:
    """Nested lists with None for NaN, which JSON does not know."""
    return [[[None if math.isnan(x) else x for x in row] for row in rows] for rows in table.tolist()]
