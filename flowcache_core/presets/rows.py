"""Rows of preset files, checked field by field: anybody may have written them."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import SettingError, is_finite, require, require_count, require_finite
from ..reuse.base import ReusePolicy
from ..reuse.build import build_policy, build_quantity
from ..reuse.schedule import StaticSchedule
from ..schedule import MOST_STEPS, require_shift
from .kv import kv_of
from .preset import CurvePoint, Preset


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
    accepted = (
        'a list of {"share": number, "psnr": number}, with first_share and later_share where they differ, '
        "and first and computed where it states the steps"
    )
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
    lists = [point["computed"]] if "computed" in point else []
    lists += [point["first"]] if point.get("first") else []  # empty: as the others
    return all(is_finite(share) and 0 <= share <= 1 for share in shares) and all(
        _is_steps(found, steps) for found in lists
    )


def _is_steps(found: object, steps: int) -> bool:
    """Whether it is a list of own steps, 0 among them."""
    if not isinstance(found, list | tuple) or 0 not in found:
        return False
    return all(isinstance(step, int) and not isinstance(step, bool) and 0 <= step < steps for step in found)


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
