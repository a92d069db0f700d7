"""A recording: what runs of one model with one set of settings showed of it, as a small JSON that grows run by run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ..engine import EngineSettings
from ..errors import SettingError, require, require_count, require_finite
from ..files import write_json
from ..plan.base import Plan
from ..reading.json_text import read_object
from .gram import Grams, GramSum

SCHEMA = 1
DIGITS = 12  # of an inner product in the file: differences of velocities down to 1e-6 of their size stay exact to 1 %


@dataclass(frozen=True)
class Facts:
    """What runs must share for their recordings to be one.

    model: name of the model or its file. sha256: of its weights, "" where nobody read them. shift: of the noise levels,
    None where they follow another rule. plan, solver: their names. offset: ticks between the starts of two chunks.
    architecture: see :func:`..architecture.architecture_of`.
    """

    model: str
    sha256: str
    shift: float | None
    guidance: float
    solver: str
    plan: str
    offset: int
    architecture: str = ""

    @classmethod
    def of(
        cls,
        settings: EngineSettings,
        model: str,
        sha256: str,
        shift: float | None,
        guidance: float,
        architecture: str = "",
    ) -> Facts:
        """Of runs with these settings."""
        plan = settings.plan
        return cls(model, sha256, shift, guidance, settings.solver.name, plan.name, offset_of(plan), architecture)


@dataclass
class Recording:
    """chunks: of the longest video recorded, those given clean not counted. sources: one line per video, for the
    evidence. Fill it by running with ``Record(grams=recording.grams)``.
    """

    facts: Facts
    chunks: int
    grams: Grams = field(default_factory=Grams)
    sources: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        return len(self.grams.levels) - 1

    def remarks(self) -> tuple[str, ...]:
        """One sentence for everything that makes the recording less than whole."""
        found, grams = [], self.grams
        if lost := grams.begun - grams.whole:
            found.append(f"{lost} of {grams.begun} chunks were not finished or not finite, and are left out")
        if not grams.later.count:
            found.append("no chunk but the first was recorded: later ones get its list, which is longer than they need")
        if not grams.first.count:
            found.append("only videos that continue were recorded: a first chunk gets the list of the later ones")
        return tuple(found)

    def merge(self, other: Recording) -> None:
        """Add what ``other`` saw. SettingError naming the first thing in which the two differ."""
        for one in fields(Facts):
            mine, theirs = getattr(self.facts, one.name), getattr(other.facts, one.name)
            require(mine == theirs, f"recording.{one.name}", theirs, f"{mine!r}, as in the recording it is added to")
        mine, theirs = self.grams.sigmas, other.grams.sigmas
        same = mine is None or theirs is None or mine == theirs
        require(same, "recording.sigmas", theirs, f"{mine}, as in the recording it is added to")
        self.grams.sigmas = mine or theirs
        self.grams.begun += other.grams.begun
        for table, more in ((self.grams.first, other.grams.first), (self.grams.later, other.grams.later)):
            if more.total is not None:
                table.add(more.total, more.count)
        self.chunks = max(self.chunks, other.chunks)
        self.sources += other.sources

    def save(self, path: Path) -> None:
        write_json(path, self.document(), "recording")

    def document(self) -> dict[str, Any]:
        """The recording as its file states it; what is symmetric is written once."""
        return {
            "schema": SCHEMA,
            "recording": asdict(self.facts),
            "chunks": self.chunks,
            "sources": list(self.sources),
            "sigmas": list(self.grams.levels),
            "begun": self.grams.begun,
            "first": _written(self.grams.first),
            "later": _written(self.grams.later),
        }

    @classmethod
    def load(cls, path: Path) -> Recording:
        """SettingError naming the file when it is none, damaged, or written by a later version."""
        where = f"recording {path.name}"
        return cls.parse(read_object(path, where, "a JSON file that calibrate wrote"), where)

    @classmethod
    def parse(cls, content: object, where: str = "recording") -> Recording:
        """A recording from its document; ``where`` names it in errors (SettingError)."""
        known = isinstance(content, Mapping) and isinstance(content.get("recording"), Mapping) and "schema" in content
        if not known or not isinstance(content, Mapping):
            raise SettingError("recording", where, "a recording that calibrate or a node wrote")
        schema = content["schema"]
        require(schema == SCHEMA, f"{where}: schema", schema, f"{SCHEMA}; update FlowCache for a later one")
        facts = _facts(content["recording"], where)
        sigmas = tuple(_numbers(content.get("sigmas"), f"{where}: sigmas"))
        falling = len(sigmas) > 1 and all(a > b >= 0 for a, b in zip(sigmas, sigmas[1:], strict=False))
        require(falling, f"{where}: sigmas", sigmas, "noise levels that fall to 0 or above")
        first, later = (_read(content.get(key), len(sigmas) - 1, f"{where}: {key}") for key in ("first", "later"))
        begun, chunks, sources = content.get("begun", 0), content.get("chunks", 0), content.get("sources", [])
        require_count(f"{where}: begun", begun, minimum=first.count + later.count)
        require_count(f"{where}: chunks", chunks, minimum=1)
        texts = isinstance(sources, Sequence) and all(isinstance(one, str) for one in sources)
        require(texts, f"{where}: sources", sources, "a list of texts")
        return cls(facts, chunks, Grams(sigmas, begun, first, later), tuple(sources))


def offset_of(plan: Plan) -> int:
    """Ticks between the starts of two chunks; all steps where one chunk is in work at a time, or there is one."""
    starts = sorted(plan.first_tick.values())
    return starts[1] - starts[0] if len(starts) > 1 else plan.steps


def _facts(found: Mapping[str, Any], where: str) -> Facts:
    texts = {key: found.get(key) for key in ("model", "sha256", "solver", "plan")}
    texts["architecture"] = found.get("architecture", "")
    for key, value in texts.items():
        require(isinstance(value, str), f"{where}: recording.{key}", value, "a text")
    shift, guidance, offset = found.get("shift"), found.get("guidance"), found.get("offset")
    require_count(f"{where}: recording.offset", offset, minimum=0)  # type: ignore[arg-type]
    if shift is not None:
        require_finite(f"{where}: recording.shift", shift, minimum=0.0)
    require_finite(f"{where}: recording.guidance", guidance, minimum=0.0)  # type: ignore[arg-type]
    return Facts(shift=shift, guidance=guidance, offset=offset, **texts)  # type: ignore[arg-type]


def _written(table: GramSum) -> dict[str, Any]:
    if table.total is None:
        return {"chunks": 0, "mean": []}
    mean = table.mean()
    return {
        "chunks": table.count,
        "mean": [[float(f"{value:.{DIGITS}g}") for value in row[i:]] for i, row in enumerate(mean)],
    }


def _read(found: object, steps: int, where: str) -> GramSum:
    if not isinstance(found, Mapping):
        raise SettingError(where, found, '{"chunks": number, "mean": rows}')
    count, rows = found.get("chunks"), found.get("mean")
    require_count(f"{where}.chunks", count, minimum=0)  # type: ignore[arg-type]
    if not count:
        return GramSum()
    fits = isinstance(rows, Sequence) and len(rows) == steps
    require(fits, f"{where}.mean", f"{len(rows) if isinstance(rows, Sequence) else rows} rows", f"{steps} rows")
    mean = torch.zeros(steps, steps, dtype=torch.float64)
    for i, row in enumerate(rows or ()):
        values = _numbers(row, f"{where}.mean[{i}]")
        require(len(values) == steps - i, f"{where}.mean[{i}]", f"{len(values)} numbers", f"{steps - i} numbers")
        mean[i, i:] = mean[i:, i] = torch.tensor(values, dtype=torch.float64)
    require(bool((mean.diagonal() >= 0).all()), f"{where}.mean", "a negative square", "mean squares of velocities")
    return GramSum(mean * count, count)


def _numbers(found: object, where: str) -> list[float]:
    whole = isinstance(found, Sequence) and not isinstance(found, str)
    good = whole and all(
        isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n)
        for n in found  # type: ignore[attr-defined]
    )
    require(good, where, "something else" if whole else found, "a list of finite numbers")
    return [float(n) for n in found]  # type: ignore[attr-defined]
