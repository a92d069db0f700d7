"""Named settings per model, one JSON file each."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import SettingError, is_finite, listed, require, require_count, require_finite
from ..families import FAMILIES
from ..kv.settings import KVSettings
from ..reading.json_text import read_object
from ..report.events import RunStarted
from ..reuse.base import ReusePolicy
from ..reuse.build import build_policy, build_quantity
from ..reuse.quantity import Quantity
from ..reuse.schedule import StaticSchedule, stretch
from ..schedule import MOST_STEPS, require_shift
from .kv import kv_of

FOLDER = Path(__file__).parent
SCHEMA = 1
ACCEPTED = f'JSON with "schema": {SCHEMA} and "presets"'


@dataclass(frozen=True)
class CurvePoint:
    """One schedule of a curve. share: computed steps over all steps, of the first and of every later chunk. lists: the
    steps themselves, of the first chunk and of the later ones; empty where the curve does not state them. quantity:
    what reused steps take, None for what the preset's own do.
    """

    first: float
    later: float
    psnr: float
    lists: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    quantity: Quantity | None = None

    @classmethod
    def of(cls, point: Mapping[str, Any]) -> CurvePoint:
        share, lists = point["share"], (tuple(point.get("first", ())), tuple(point.get("computed", ())))
        quantity = build_quantity(point["quantity"]) if "quantity" in point else None
        return cls(point.get("first_share", share), point.get("later_share", share), point["psnr"], lists, quantity)

    def share(self, run: RunStarted) -> float:
        """Share of the steps that this schedule computes in ``run``: the more chunks, the less the first one counts."""
        chunks = run.chunks - run.prefix_chunks
        first = 0 if run.prefix_chunks else 1
        return (first * self.first + (chunks - first) * self.later) / chunks


@dataclass(frozen=True)
class Preset:
    """One row of a model's file.

    attention: the pattern the run uses. computed_steps: how many of a chunk's own steps are computed where that is
    published or calibrated (the cost model counts with it), None where it depends on the video. requires: what the runs
    are like that it is for: ``steps``, the ``shift`` of a model that has one, ``guidance`` where it counts. curve: what
    the calibration measured, at ``guidance``, or (not ``measured``) what a recording lets expect. architecture: of the
    transformer it was recorded on, "" where that is not noted. sigmas: noise levels of the runs it is for, where no
    shift describes them. kv: what a published run kept of its finished chunks, None where it kept all or the row says
    nothing. solver, plan: of the runs that it was made from, "" where they are not noted.
    """

    model: str
    name: str
    text: str
    policy: ReusePolicy
    quantity: Quantity
    attention: str = "block-causal"
    computed_steps: int | None = None
    requires: Mapping[str, float] | None = None
    curve: tuple[CurvePoint, ...] = ()
    guidance: float | None = None
    architecture: str = ""
    sigmas: tuple[float, ...] = ()
    kv: KVSettings | None = None
    measured: bool = True
    solver: str = ""
    plan: str = ""

    def with_policy(self, policy: ReusePolicy) -> Preset:
        """The same run under another policy; nothing that was measured of this one holds for it."""
        return replace(self, policy=policy, computed_steps=None, requires=None, curve=())

    def fit(
        self, steps: int, shift: float | None = None, guidance: float | None = None, *, rescale: bool = False
    ) -> tuple[Preset, str | None]:
        """This preset for a run of ``steps`` steps (and ``shift`` and ``guidance``, where they are known).

        A preset fits the runs that it is made for. For others it is refused with a SettingError, or with ``rescale``
        its table is stretched; the second value then says what changed.
        """
        if self.requires is None:
            return self, None
        made_for, given = int(self.requires["steps"]), f"{steps} steps"
        accepted, fits = f"{made_for} steps", steps == made_for
        for name, value in (("shift", shift), ("guidance", guidance)):
            if (wanted := self.requires.get(name)) is not None:
                accepted += f" at {name} {wanted:g}"
                if value is not None and not math.isclose(value, wanted, rel_tol=0.01):
                    given, fits = f"{given} at {name} {value:.3g}", False
        if fits:
            return self, None
        require(rescale, f"preset {self.name}", given, f"{accepted} (where there is a rescale option, with it)")
        warning, count = f"preset {self.name} was calibrated for {accepted}; ", self.computed_steps
        policy = self.policy
        if isinstance(policy, StaticSchedule):
            table = stretch(policy.computed, made_for, steps)
            first = stretch(policy.first, made_for, steps) if policy.first else ()
            policy, count = replace(policy, computed=table, first=first), len(table)
            warning += f"stretched to {given}: {count} steps computed, quality not known"
        else:
            warning += f"with {given} its quality is not known"
        return replace(self, policy=policy, computed_steps=count, requires=None, curve=()), warning

    def expected_psnr(self, share: float, run: RunStarted) -> float | None:
        """dB that the calibration found at this share of computed steps; None outside what it measured (blockwise)."""
        if self.measured and run.plan != "blockwise":
            return None
        points = sorted((point.share(run), point.psnr) for point in self.curve)
        for (low, below), (high, above) in zip(points, points[1:], strict=False):
            if low <= share <= high:
                return below + (above - below) * (share - low) / (high - low)
        return next((psnr for at, psnr in points if abs(at - share) < 0.01), None)

    def expectation(self, share: float, run: RunStarted) -> str | None:
        """Where ``run`` lies on the calibrated curve, in one sentence; None where nothing was measured."""
        expected = self.expected_psnr(share, run)
        if expected is None:
            return None
        found = f"{share:.2f} of the steps computed; expected {expected:.0f} dB on this model"
        if not self.measured:
            found += " (from its recording; not measured)"
        elif self.guidance is not None:
            found += f" (median, calibrated at guidance {self.guidance:g})"
        return found if run.budget_tokens is None else f"{found}, with the whole history kept"


def models() -> tuple[str, ...]:
    """Models that have presets."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def model_file(model: str) -> Mapping[str, Any]:
    """A model's whole file: ``shape``, ``run`` and ``presets``."""
    require(isinstance(model, str) and model in models(), "model", model, ", ".join(models()))
    return _model_file(model)


@cache
def _model_file(model: str) -> Mapping[str, Any]:
    return read_presets(FOLDER / f"{model}.json")


def read_presets(path: Path) -> dict[str, Any]:
    """A preset file, ours or a calibrated one. SettingError when it is none."""
    return checked(read_object(path, "preset file", ACCEPTED), "preset file", str(path))


def checked(content: dict[str, Any], field: str, value: str) -> dict[str, Any]:
    """The content of a preset file; SettingError for ``field`` when it is none, or one of a later version."""
    schema = content.get("schema")
    later = isinstance(schema, int) and schema > SCHEMA
    require(not later, f"{field}: schema", schema, f"{SCHEMA}; update FlowCache for a later one")
    require(schema == SCHEMA and isinstance(content.get("presets"), dict), field, value, ACCEPTED)
    return content


def kind_of(model: str) -> str | None:
    """The family of a model with a published shape (``families.py``), None for a mini model."""
    kind: str | None = model_file(model).get("shape", {}).get("kind")
    return kind


def models_of(kind: str) -> list[str]:
    """Models with a published shape of this kind."""
    return [model for model in models() if kind_of(model) == kind]


def published_run(model: str, kind: str) -> Mapping[str, Any]:
    """The run that a model was published with; SettingError for a model of another kind."""
    require(model in models_of(kind), "model", model, ", ".join(models_of(kind)))
    run: Mapping[str, Any] = model_file(model)["run"]
    return run


def preset_names(model: str) -> tuple[str, ...]:
    return tuple(model_file(model)["presets"])


def load_preset(model: str, name: str) -> Preset:
    """SettingError naming the presets there are when ``name`` is none of them.

    ``name`` may also be ``FILE.json``, a file that ``calibrate`` wrote for this model, whose first preset is meant, or
    ``FILE.json:NAME`` for another one in it.
    """
    rows, where = model_file(model)["presets"], f"model {model}"
    require(isinstance(name, str), "preset", name, f"{listed(rows, 40)} ({where})")
    if file := re.fullmatch(r"(.*\.json)(?::([^/\\]+))?", name):
        rows, where = read_presets(Path(file[1]))["presets"], file[1]
        name = file[2] or next(iter(rows), "")
    if name not in rows:
        raise SettingError("preset", name, f"{listed(rows, 40)} ({where})")
    return parse_row(model, name, rows[name])


def parse_row(model: str, name: str, row: object) -> Preset:
    """One row of a model's ``presets``; SettingError naming what is missing in it or of another form."""
    wanted = FAMILIES[kind_of(model) or "wan"].requires
    return preset_of(model, name, row, wanted, wanted)


def preset_of(model: str, name: str, row: object, wanted: frozenset[str], known: frozenset[str]) -> Preset:
    """A row whose ``requires``, where it has one, states all of ``wanted`` and nothing but ``known`` and guidance."""
    where = f"presets.{name}"
    if not isinstance(row, dict):
        raise SettingError(where, row, "an object with text and policy")
    for key in ("text", "policy"):
        require(key in row, f"{where}.{key}", "nothing", "a sentence" if key == "text" else '{"name": ..., <fields>}')
    require(isinstance(row["text"], str), f"{where}.text", row["text"], "a sentence")
    evidence = row.get("evidence", {})
    require(isinstance(evidence, dict), f"{where}.evidence", evidence, "an object with the calibration's curve")
    policy, quantity = build_policy(row["policy"]), build_quantity(row.get("quantity", "velocity"))
    guidance, measured = evidence.get("guidance"), "curve" in evidence
    curve = evidence.get("curve" if measured else "expected", ())
    require(guidance is None or is_finite(guidance), f"{where}.evidence.guidance", guidance, "a number")
    accepted = 'a list of {"share": number, "psnr": number}, with first_share and later_share where they differ, and '
    accepted += "first and computed where it states the steps"
    requires = _requirements(f"{where}.requires", row.get("requires"), wanted, known, policy)
    steps = MOST_STEPS if requires is None else int(requires["steps"])
    points = isinstance(curve, list | tuple) and all(_is_point(point, steps) for point in curve)
    require(points, f"{where}.evidence.{'curve' if measured else 'expected'}", curve, accepted)
    count, attention = row.get("computed_steps"), row.get("attention", "block-causal")
    if count is not None:
        require_count(f"{where}.computed_steps", count, minimum=1, maximum=MOST_STEPS)
    patterns = ("block-causal", "bidirectional")
    require(attention in patterns, f"{where}.attention", attention, ", ".join(patterns))
    return Preset(
        model=model,
        name=name,
        text=row["text"],
        policy=policy,
        quantity=quantity,
        attention=attention,
        computed_steps=count,
        requires=requires,
        curve=tuple(map(CurvePoint.of, curve)),
        guidance=guidance,
        architecture=_text(f"{where}.evidence.architecture", evidence.get("architecture", "")),
        sigmas=_levels(f"{where}.evidence.sigmas", evidence.get("sigmas", ())),
        kv=kv_of(f"{where}.kv", row.get("kv")),
        measured=measured,
        solver=_text(f"{where}.evidence.solver", evidence.get("solver", "")),
        plan=_text(f"{where}.evidence.plan", evidence.get("plan", "")),
    )


def _text(field: str, found: object) -> str:
    if not isinstance(found, str):
        raise SettingError(field, found, "a text")
    return found


def _levels(field: str, found: object) -> tuple[float, ...]:
    if not isinstance(found, list | tuple) or not all(is_finite(level) and 0 <= level <= 1 for level in found):
        raise SettingError(field, found, "a list of noise levels from 1 to 0")
    return tuple(float(level) for level in found)


def _is_point(point: object, steps: int) -> bool:
    """Whether it is one schedule of a curve over ``steps`` steps, as :meth:`CurvePoint.of` takes it."""
    if not isinstance(point, dict) or not is_finite(point.get("psnr")):
        return False
    shares = [point.get("share"), *(point[key] for key in ("first_share", "later_share") if key in point)]
    lists = [point[key] for key in ("first", "computed") if key in point]
    return all(is_finite(share) and 0 <= share <= 1 for share in shares) and all(
        _is_steps(found, steps) for found in lists
    )


def _is_steps(found: object, steps: int) -> bool:
    """Whether it is a list of own steps, 0 among them."""
    if not isinstance(found, list | tuple) or 0 not in found:
        return False
    return all(isinstance(step, int) and 0 <= step < steps for step in found)


def _requirements(
    field: str, requires: object, wanted: frozenset[str], known: frozenset[str], policy: ReusePolicy
) -> Mapping[str, float] | None:
    """The run that a preset is for, which has every step its table names; SettingError otherwise."""
    if requires is None:
        return None
    accepted = ", ".join(f'"{name}": number' for name in ("steps", "shift") if name in wanted)
    accepted = f'{{{accepted}}}, and "guidance": number where it counts'
    if not isinstance(requires, dict) or not wanted <= set(requires) <= known | {"guidance"}:
        raise SettingError(field, requires, accepted)
    require_count(f"{field}.steps", requires["steps"], minimum=1, maximum=MOST_STEPS)
    if "shift" in requires:
        require_shift(requires["shift"])
    if "guidance" in requires:
        require_finite(f"{field}.guidance", requires["guidance"], minimum=0)
    if isinstance(policy, StaticSchedule):
        policy.check(requires["steps"])
    return requires
