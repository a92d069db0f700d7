"""Named settings per model, one JSON file each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import SettingError, require
from ..reuse.base import ReusePolicy
from ..reuse.build import build_policy, build_quantity
from ..reuse.quantity import Quantity

FOLDER = Path(__file__).parent
SCHEMA = 1


@dataclass(frozen=True)
class Preset:
    """One row of a model's file.

    attention: the pattern the run uses. computed_steps: how many of a chunk's own steps are computed where that is
    published or calibrated (the cost model counts with it), None where it depends on the video.
    """

    model: str
    name: str
    text: str
    policy: ReusePolicy
    quantity: Quantity
    attention: str = "block-causal"
    computed_steps: int | None = None


def models() -> tuple[str, ...]:
    """Models that have presets."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@cache
def model_file(model: str) -> Mapping[str, Any]:
    """A model's whole file: ``shape``, ``run`` and ``presets``."""
    require(model in models(), "model", model, ", ".join(models()))
    content: dict[str, Any] = json.loads((FOLDER / f"{model}.json").read_text(encoding="utf-8"))
    require(content.get("schema") == SCHEMA, f"presets/{model}.json schema", content.get("schema"), str(SCHEMA))
    return content


def preset_names(model: str) -> tuple[str, ...]:
    return tuple(model_file(model)["presets"])


def load_preset(model: str, name: str) -> Preset:
    """SettingError naming the presets there are when ``name`` is none of them."""
    rows = model_file(model)["presets"]
    if name not in rows:
        raise SettingError("preset", name, f"{', '.join(rows)} (model {model})")
    row = rows[name]
    return Preset(
        model=model,
        name=name,
        text=row["text"],
        policy=build_policy(row["policy"]),
        quantity=build_quantity(row.get("quantity", "velocity")),
        attention=row.get("attention", "block-causal"),
        computed_steps=row.get("computed_steps"),
    )
