"""Where benchmarks leave their figures, with the machine and the date beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from flowcache_core.files import require_folder, whole_file, write_json
from flowcache_core.report.document import machine

FOLDER = Path(__file__).parent / "results"


def save(name: str, figures: Mapping[str, Any]) -> Path:
    """Write ``results/<name>.json``."""
    date = datetime.now(timezone.utc).date().isoformat()
    path = FOLDER / f"{name}.json"
    content = {"benchmark": name, "date": date, "machine": machine(), "figures": figures}
    write_json(path, content, "results")
    return path


def stored(name: str) -> dict[str, Any]:
    """The figures of ``results/<name>.json``, none where there is no such file."""
    path = FOLDER / f"{name}.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["figures"] if path.is_file() else {}
    return content


def save_picture(name: str, draw: Callable[[Path], None]) -> Path:
    """Write ``results/<name>.png``: ``draw`` saves a PNG under the path it is given."""
    path = FOLDER / f"{name}.png"
    with whole_file(path, "results") as part:
        draw(part)
    return path


def require_writable() -> None:
    """SettingError when no result could be left here: before anything is measured."""
    require_folder(FOLDER, "results")
