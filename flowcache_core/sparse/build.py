"""Sparse attention from names and numbers, as command lines and preset files give it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import SettingError
from ..reading.json_text import parse_object
from ..reuse.build import build_part
from . import METHODS
from .calibrated import Calibrated
from .mask_reuse import MaskReuse
from .method import SparseMethod
from .settings import SparseSettings

CHOICES: dict[str, type[SparseMethod]] = {name: kind for name, kind in METHODS.items() if kind is not Calibrated}
"""Methods that need no calibration."""
FORM = 'a method\'s name, or {"name": ..., <its fields>} with dense_chunks, dense_steps, dense_lasting, reuse, engine'


def sparse_from_text(text: str, **defaults: Any) -> SparseSettings:
    """Settings as a command line takes them: ``xattention`` or ``{"name": "top-k", "density": 0.4, "reuse": {}}``.

    defaults: fields of the method where the text does not say otherwise.
    """
    stated = parse_object(text, "sparse", FORM) if text.lstrip().startswith("{") else {"name": text}
    own: dict[str, Any] = {key: stated.pop(key) for key in SparseSettings.__dataclass_fields__ if key in stated}
    if "reuse" in own:
        own["reuse"] = _reuse(own["reuse"])
    kind = METHODS.get(str(stated.get("name")))
    known = {} if kind is None else kind.__dataclass_fields__
    method = build_part("sparse", CHOICES, {**{k: v for k, v in defaults.items() if k in known}, **stated})
    try:
        return SparseSettings(method, **own)
    except TypeError as error:
        raise SettingError("sparse", text, FORM) from error


def _reuse(stated: object) -> MaskReuse | None:
    if stated is None or stated is False:
        return None
    if stated is True:
        return MaskReuse()
    if not isinstance(stated, Mapping) or not set(stated) <= set(MaskReuse.__dataclass_fields__):
        raise SettingError("reuse", stated, f"true, or an object of {', '.join(MaskReuse.__dataclass_fields__)}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in stated.items()}
    return MaskReuse(**values)
