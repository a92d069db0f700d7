"""report.json: runs, quality, settings, machine and date as one versioned document (docs/report-schema.md)."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ..files import write_json
from .quality import Quality
from .record import RunRecord

SCHEMA = 1


def to_json(record: RunRecord) -> dict[str, Any]:
    """One run, plain types only. Numbers that are not finite become null."""
    started = record.started
    return plain(
        {
            "tag": record.tag,
            "plan": started.plan,
            "attention": started.attention,
            "chunks": started.chunks,
            "prefix_chunks": started.prefix_chunks,
            "windows": [asdict(window) for window in record.windows],
            "steps": started.steps,
            "total_steps": record.total_steps,
            "computed_steps": record.computed_steps,
            "part_steps": record.part_steps,
            "reused_steps": record.reused_steps,
            "computed_share": record.computed_share,
            "seconds": record.seconds,
            "engine_seconds": record.engine_seconds,
            "pflops": record.pflops,
            "kv_bytes_peak": record.kv_bytes,
            "kv_capacity_tokens": started.kv_tokens,
            "budget_tokens": started.budget_tokens,
            "kv_tokens": [{"tick": tick, "tokens": tokens} for tick, tokens in record.kv_tokens],
            "steps_taken": [asdict(step) for step in record.steps_taken],
            "compressions": [asdict(event) for event in record.compressions],
            "cache_passes": [asdict(event) for event in record.cache_passes],
            "window_passes": [asdict(event) for event in record.window_passes],
            "not_finite": [asdict(event) for event in record.not_finite],
            "attention_density": record.attention_density,
            "densities": [asdict(event) for event in record.densities],
            "head_densities": [asdict(event) for event in record.head_densities],
            "places": [asdict(event) for event in record.places],
            "fault": record.fault,
            "notes": list(record.notes),
        }
    )


def document(
    runs: Mapping[str, RunRecord], quality: Quality | None = None, settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The whole report. ``quality`` is of the last run against the first."""
    return plain(
        {
            "schema": SCHEMA,
            "runs": {name: to_json(record) for name, record in runs.items()},
            "quality": None if quality is None else asdict(quality),
            "settings": dict(settings or {}),
            "machine": machine(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
    )


def write_document(path: Path, content: Mapping[str, Any]) -> None:
    """Write the report as JSON; the file is whole or absent. Raises SettingError when the folder cannot be written."""
    write_json(path, content)


def machine() -> dict[str, Any]:
    """What every measured figure is quoted with."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def plain(value: Any) -> Any:
    """Containers as dicts and lists, floats that JSON cannot hold as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _processor() -> str:
    """The processor's name; Linux keeps it in /proc, where ``platform`` does not look."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
