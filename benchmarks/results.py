"""Where benchmarks leave their figures, with the machine and the date beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from flowcache_core.report.document import machine

FOLDER = Path(__file__).parent / "results"


def save(name: str, figures: Mapping[str, Any]) -> Path:
    """Write ``results/<name>.json``."""
    FOLDER.mkdir(exist_ok=True)
    date = datetime.now(timezone.utc).date().isoformat()
    path = FOLDER / f"{name}.json"
    content = {"benchmark": name, "date": date, "machine": machine(), "figures": figures}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path
